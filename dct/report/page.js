"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list"), search = document.getElementById("search");
const sort = document.getElementById("sort"), shown = document.getElementById("shown");

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text; // text, never markup
  if (kind) element.className = kind;
  return element;
}
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits));
const share = (mark) => (mark ? mark.right / mark.asked : -1);

const orders = {
  "rank": (v) => v.place,
  "successes": (v) => -share(v.validation),
  "score": (v) => -(v.score ?? -Infinity),
  "strength": (v) => -v.alpha,
  "least damage": (v) => v.damage ?? Infinity,
  "kind": (v) => v.kind ?? Infinity,
};
for (const name of Object.keys(orders)) sort.append(new Option(name, name));

data.vectors.forEach((vector, place) => {
  vector.place = place;
  vector.text = [
    `vector ${vector.vector}`, vector.kind === null ? "" : `kind ${vector.kind}`, ...vector.more, ...vector.less,
    ...vector.causes, ...(data.kinds[vector.kind] ?? []).flat(), ...Object.keys(vector.labels), ...vector.replies.flatMap((r) => [r.prompt, ...r.said.map((s) => s.text)]),
  ].join("\n").toLowerCase();
});

// Words of a completion that the unsteered one does not have at their place are marked (longest common subsequence).
function marked(text, plain) {
  const out = make("p", undefined, "said"), words = text.split(/(\s+)/), other = (plain || "").split(/(\s+)/);
  const n = Math.min(words.length, 400), m = Math.min(other.length, 400);
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      best[i][j] = words[i] === other[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  let i = 0, j = 0;
  while (i < words.length) {
    if (i < n && j < m && words[i] === other[j]) { out.append(words[i]); i++; j++; }
    else if (i < n && j < m && best[i][j + 1] >= best[i + 1][j]) j++;
    else { out.append(/\S/.test(words[i]) ? make("mark", words[i]) : words[i]); i++; }
  }
  return out;
}

function inside(vector) {
  const box = make("div", undefined, "inside");
  const told = make("dl");
  const line = (name, value) => { told.append(make("dt", name), make("dd")); told.lastChild.append(value); };
  if (vector.more.length) line("makes likelier", vector.more.join(" · "));
  if (vector.less.length) line("less likely", vector.less.join(" · "));
  if (vector.causes.length) line("what it causes points to", vector.causes.join(" · "));
  for (const [what, layer, cosine, chance] of vector.resembles)
    line("resembles", `${what}, most in layer ${layer}: cosine ${cosine.toFixed(2)} (95% of random vectors: below ${chance.toFixed(2)})`);
  const labels = Object.entries(vector.labels).map(([label, count]) => `${count} ${label}`).join(", ");
  if (labels) line("all its replies", labels);
  for (const [prompt, text] of data.kinds[vector.kind] ?? []) line("one of its kind says", `${text}  (to: ${prompt})`);
  const near = make("span");
  for (const [name, cosine] of vector.nearest) {
    const link = make("button", name); link.type = "button"; link.dataset.vector = name;
    near.append(link, ` (cosine ${cosine.toFixed(2)})  `);
  }
  line("nearest", near);
  line("again", make("code", `dct steer ${data.run} --vector ${vector.vector} --prompt "..."`));
  box.append(told);
  for (const reply of vector.replies) {
    box.append(make("p", reply.prompt, "asked"));
    const pairs = make("div", undefined, "pairs"), plain = data.unsteered[reply.prompt];
    if (plain !== undefined) {
      const alone = make("div"); alone.append(make("h4", "unsteered"), make("p", plain, "said")); pairs.append(alone);
    }
    for (const one of reply.said) {
      const cell = make("div"), head = make("h4", `${number(one.scale / data.R, 2)} R `);
      head.append(make("span", one.label, `tag ${one.label}`));
      cell.append(head, marked(one.text, plain)); pairs.append(cell);
    }
    box.append(pairs);
  }
  if (!vector.replies.length) box.append(make("p", "No reply under it is on record.", "asked"));
  return box;
}

function row(vector) {
  const details = make("details"), summary = make("summary");
  details.id = `vector-${vector.vector}`; details.setAttribute("role", "listitem");
  const mark = vector.validation, first = vector.replies.length ? vector.replies[0].said.at(-1).text : "";
  const cell = (label, value, kind) => { const span = make("span", undefined, kind); span.append(make("small", label + " "), value); return span; };
  summary.append(
    make("b", vector.vector), cell("", mark ? `${mark.right} of ${mark.asked}` : "–"),
    cell("damage", number(vector.damage)), cell("score", number(vector.score), "wide"),
    cell("kind", vector.kind === null ? "–" : String(vector.kind), "wide"),
    make("span", [vector.more.slice(0, 2).join(" "), first.replace(/\s+/g, " ")].filter(Boolean).join(" · "), "first"),
  );
  details.append(summary);
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(inside(vector)); });
  return details;
}
const rows = new Map(data.vectors.map((vector) => [vector.vector, row(vector)]));

function draw() {
  const words = search.value.toLowerCase().match(/(vector|kind) -?\d+|\S+/g) || [];
  const fits = (vector) => words.every((word) =>
    /^(vector|kind) /.test(word) ? vector.text.split("\n", 2).includes(word) : vector.text.includes(word));
  const key = orders[sort.value];
  const kept = data.vectors.filter(fits).sort((a, b) => key(a) - key(b) || a.place - b.place);
  list.replaceChildren(...kept.map((vector) => rows.get(vector.vector)));
  shown.textContent = `${kept.length} of ${data.vectors.length}`;
}
function go(name) {
  if (!rows.has(name)) return;
  search.value = ""; draw();
  const details = rows.get(name); details.open = true;
  details.scrollIntoView({ block: "center" }); details.firstChild.focus({ preventScroll: true });
}
document.addEventListener("click", (event) => {
  const vector = event.target.closest("[data-vector]"), kind = event.target.closest("[data-kind]");
  if (vector) go(vector.dataset.vector);
  if (kind) { search.value = `kind ${kind.dataset.kind}`; draw(); search.scrollIntoView({ block: "center" }); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
  if (event.key === "Escape" && document.activeElement === search) { search.value = ""; draw(); }
});
search.addEventListener("input", draw); sort.addEventListener("change", draw);
draw();
