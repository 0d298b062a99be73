"""How methods are found by name, and what is said of one that cannot be used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dct
from dct.errors import DctError, UsageError
from dct.fitting import decided, found_scale, with_changes
from dct.method import Method, built_in, method, names
from dct.runs import Run
from dct.settings import METHODS, FitSettings

PACKAGE = Path(dct.__file__).parent

USABLE = """
from dct.method import Method
class Mine(Method):
    name = "mine"
    about = "nothing"
    def work(self, settings, dim, dim_out, done=None): return {}
    def fit(self, job): raise NotImplementedError
"""


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs packages, each with one entry point and the module that it names."""
    modules: list[str] = []

    def install(package: str, entry: str, code: str = USABLE) -> None:
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        module = f"{package.replace('-', '_')}_code"
        (folder / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dct.methods]\n{entry.format(module)}\n")
        monkeypatch.syspath_prepend(str(folder))
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def test_a_built_in_method_is_its_file():
    files = {p.stem for p in (PACKAGE / "fits").glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in built_in()} == files
    assert METHODS == built_in() == names()[: len(built_in())]
    for name in built_in():
        found = method(name)
        assert found.name == name
        assert found.about
        assert type(found).__module__ == f"dct.fits.{name.replace('-', '_')}"


def test_listing_them_imports_no_torch():
    code = "import sys, dct.method, dct.settings; dct.method.names(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nobody_else_asks_which_method_it_is():
    """No comparison with a method's name, in the package beside `dct/fits`; the benchmark chooses its own."""
    for path in PACKAGE.rglob("*.py"):
        if {"fits", "bench"} & set(path.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & set(built_in())
                assert not named, f"{path}:{node.lineno}"


def test_a_method_of_another_package_is_found(offer):
    offer("stranger", "mine = {}:Mine")
    assert names() == (*built_in(), "mine")
    assert method("mine").about == "nothing"
    assert FitSettings(method="mine").method == "mine"
    with pytest.raises(UsageError, match=r"unknown `method` 'yours': choose .*, quadratic, mine") as caught:
        FitSettings(method="yours")
    assert caught.value.argument == "method"


@pytest.mark.parametrize(
    ("entry", "code", "says"),
    [
        ("mine = {}:Mine", "import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("mine = {}:Mine", "1 / 0", "ZeroDivisionError: division by zero"),
        ("mine = {}:Yours", USABLE, "has no attribute 'Yours'"),
        ("mine = {}:Mine", "class Mine: name = 'mine'", "is no dct.method.Method"),
        ("mine = {}:Mine", USABLE.replace("def fit", "def fits"), "abstract"),
        ("mine = {}:Mine", USABLE.replace('"mine"', '"ours"'), "calls itself 'ours'"),
        ("mine = {}:Mine", f"{USABLE}    options = {{'beta': 1.0}}\n", "every fit has an option 'beta'"),
        ("mine = not a place", USABLE, "cannot be used"),
    ],
)
def test_one_that_cannot_be_used_is_one_line(offer, entry, code, says):
    offer("stranger", entry, code)
    with pytest.raises(DctError, match=r"^the method 'mine' of stranger cannot be used: ") as caught:
        method("mine")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert method("linear").name == "linear"


@pytest.mark.parametrize(("name", "owners"), [("mine", "one, other|other, one"), ("linear", "dct, one")])
def test_a_name_that_two_packages_use_is_one_line(offer, name, owners):
    code = USABLE.replace('"mine"', f'"{name}"')
    offer("one", f"{name} = {{}}:Mine", code)
    if name == "mine":
        offer("other", f"{name} = {{}}:Mine", code)
    with pytest.raises(DctError, match=rf"^several packages have a method '{name}': ({owners}); keep one of them$"):
        method(name)
    assert names().count(name) == 1


def test_entry_points_that_cannot_be_read_keep_nobody_from_the_package_s_own_methods(offer):
    offer("stranger", "no equals sign")
    try:
        everyone = names()
    except DctError as error:
        assert "an installed package has entry points that cannot be read" in str(error)  # noqa: PT017
    else:
        assert "no equals sign" not in everyone  # Pythons that read past it
    assert method("exponential").name == "exponential"
    assert len(dct.fit(lambda x: x, 4, method="linear", factors=2, scale=1.0)) == 2


# --- a method's own options -------------------------------------------------------------------------------------------


def test_own_options_are_keywords_text_and_record():
    by_keyword = with_changes(FitSettings(), {"method": "melbo", "p": 4})
    by_text = FitSettings(method="melbo", method_options="p=4")
    assert by_keyword.method_options == by_text.method_options == {"p": 4}
    assert FitSettings.recorded(by_text.record()) == by_text
    assert method("melbo").own(by_text) == {"p": 4.0, "q": 2.0}
    assert decided(by_text, 8).method_options == {"p": 4.0, "q": 2.0}
    assert decided(FitSettings(), 8).method_options == {"eta": 0.25}
    assert decided(FitSettings(method="linear"), 8).method_options is None
    kinds = FitSettings(method_options="a=1, b=1.5, c=true, d=word").method_options
    assert kinds == {"a": 1, "b": 1.5, "c": True, "d": "word"}


@pytest.mark.parametrize("text", ["", "p", "p=", "=1", "p=1,p=2", "p=1,"])
def test_own_options_as_text_that_cannot_be(text):
    with pytest.raises(UsageError, match="`method_options` are options of the method with commas between"):
        FitSettings(method_options=text)


@pytest.mark.parametrize(
    ("changes", "says", "argument"),
    [
        ({"p": 4.0}, "unknown argument `p`: choose batch, beta, ", "p"),
        ({"method": "melbo", "r": 4.0}, "unknown argument `r`: .*, p, q, ", "r"),
        ({"method": "melbo", "p": "high"}, "`p` must be a number, got 'high'", "p"),
        ({"method": "melbo", "p": True}, "`p` must be a number, got True", "p"),
        ({"method_options": {"p": 4.0}}, "exponential has no option `p` of its own: choose eta", "p"),
        ({"method": "melbo", "method_options": {"r": 4.0}}, "melbo has no option `r` of its own: choose p, q", "r"),
        ({"method": "linear", "method_options": {"p": 4.0}}, "linear has no option `p` of its own: it has none", "p"),
        ({"eta": -0.1}, "`eta` is the length of a push, 0 or more: got -0.1", "eta"),
        ({"eta": 0.5, "orthogonalize": "qr"}, "`eta` is the length of soft's push, and qr has none", "eta"),
        ({"method": "quadratic", "eta": 0.5}, "`eta` is the length of soft's push, and qr has none", "eta"),
        ({"method": "melbo", "q": 0}, "the exponents `p` and `q` must be positive", "q"),
        ({"method": "melbo", "factors": 5}, "at most 4 of them: asked for 5", "factors"),
        ({"method": "cubic"}, "unknown `method` 'cubic': choose ", "method"),
        ({"orthogonalize": "qr", "factors": 5}, 'pass `orthogonalize="soft"`', "orthogonalize"),
        ({"scale": -1.0}, "`scale` must be positive", "scale"),
    ],
)
def test_arguments_are_named_as_python_names_them(changes, says, argument):
    with pytest.raises(UsageError, match=says) as caught:
        dct.fit(lambda x: x, 4, **{"scale": 1.0, **changes})
    assert caught.value.argument == argument


def test_settings_and_keywords_are_the_same_fit():
    settings = FitSettings(method="linear-projected", factors=3, scale=2.0, d_proj=5, seed=7)
    J = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    one = dct.fit(lambda x: x @ J.T, 8, settings)
    other = dct.fit(
        lambda x: x @ J.T, 8, FitSettings(seed=1), method="linear-projected", factors=3, scale=2.0, d_proj=5, seed=7
    )
    assert torch.equal(one.V, other.V)
    assert one.info["signed"] is False


def test_the_ratio_of_the_settings_is_calibrated_to():
    def f(x):
        return x + x.square().sum(1, keepdim=True) * x  # its ratio is R^2

    f.residual_norm = 0.1
    assert dct.fit(f, 5, factors=2, iterations=1, ratio=0.25).scale == pytest.approx(0.5, rel=2e-3)
    assert dct.fit(f, 5, factors=2, iterations=1).scale == pytest.approx(0.1)


def test_a_method_that_needs_no_scale_pays_for_none(offer):
    offer("stranger", "mine = {}:Mine", USABLE.replace("    def work", "    needs_scale = False\n    def work"))

    def f(x):
        raise AssertionError("no pass is needed")

    assert found_scale(f, 4, FitSettings(method="mine")) == 1.0
    f.residual_norm = 3.0
    assert found_scale(f, 4, FitSettings(method="mine")) == 3.0


def test_the_state_of_a_method_that_is_not_here_is_whole_but_cannot_be_gone_on_with(workplace, model_folder):
    kept = []
    lm = dct.load(str(model_folder))
    slice_ = dct.Slice(lm, ["a"], 1, 3)
    dct.fit(slice_, slice_.dim, factors=2, iterations=1, scale=0.5, checkpoint=kept.append)
    common = dict.fromkeys(("column", "system", "lambda", "calibration", "batch", "prompts_origin"))
    config = {
        **common, "model": str(model_folder), "fingerprint": "f", "loading": {}, "source": 1, "target": 3,
        "positions": 3, "scale": 0.5, "prompts": ["a"],
        "options": {"method": "elsewhere", "factors": 2, "iterations": 2, "seed": 0},
    }  # fmt: skip
    run = Run(Path("run"), Path("run/factors.safetensors"))
    run.save_state(kept[0], config)
    assert torch.equal(run.load_state()[0].V, kept[0].V)
    line = [sys.executable, "-m", "dct", "fit", "--resume", "--out", "run"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'elsewhere': choose cpe, exponential" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", built_in())
def test_what_a_method_says_of_its_steps_is_what_it_does(name):
    how, states = method(name), []
    dct.fit(lambda x: x + x.square(), 6, method=name, factors=3, iterations=2, scale=1.0, checkpoint=states.append)
    assert isinstance(how, Method)
    assert len(states) == (0 if how.step is None else how.steps(3, 2))
    for done, state in enumerate(states, 1):
        assert len(state.V) == how.known(3, done)
        assert state.iteration == done
