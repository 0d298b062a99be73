"""The hub refuses, or is not there: what is cached is used, and else the message names what would help."""

import shutil
import types
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from dct import DctError
from dct.loading import load

ID, COMMIT = "someone/gated", "0123456789abcdef0123456789abcdef01234567"


def answering(monkeypatch, error: Exception | None) -> None:
    def info(self, name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)


def http(kind: type, status: int, text: str = "") -> Exception:
    response = types.SimpleNamespace(status_code=status, headers={}, request=None, text="", url="")
    return kind(f"{status} Client Error. {text}", response=response)


@pytest.fixture
def cached(model_folder, tmp_path, monkeypatch) -> Path:
    """The model in a cache of the hub, as its library lays it out."""
    cache = tmp_path / "hub"
    folder = cache / "models--someone--gated"
    shutil.copytree(model_folder, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    return folder / "snapshots" / COMMIT


REFUSALS = [
    (lambda: http(GatedRepoError, 401, "gated."), r"no access to model .*401.*licence.*HF_TOKEN"),
    (lambda: http(GatedRepoError, 403, "gated repo"), r"no access to model .*403.*gated.*licence.*hf auth login"),
    (
        lambda: http(RepositoryNotFoundError, 401),
        r"no access .*401.*does not exist, or .* private or gated.*HF_TOKEN",
    ),
    (lambda: http(RepositoryNotFoundError, 404), "cannot find model someone/gated"),
    (lambda: http(HfHubHTTPError, 503), "cannot find model someone/gated.*check the name and the network"),
    (lambda: ConnectionError("no route"), "cannot find model someone/gated.*check the name and the network"),
    (lambda: OfflineModeIsEnabled("offline"), "cannot find model someone/gated"),
]


@pytest.mark.parametrize(("error", "says"), REFUSALS)
def test_a_refusal_names_what_would_help(monkeypatch, tmp_path, error, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    answering(monkeypatch, error())
    with pytest.raises(DctError, match=says) as caught:
        load(ID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("error", "says"), REFUSALS)
def test_what_is_cached_is_used(monkeypatch, cached, model_folder, error, says):
    answering(monkeypatch, error())
    said: list[str] = []
    lm = load(ID, tell=said.append)
    assert lm.fingerprint == f"hub:{ID}@{COMMIT}"
    assert lm.checkpoint.folder == cached
    assert lm.checkpoint.kind == "hub"
    offline = isinstance(error(), OfflineModeIsEnabled)
    assert [remark for remark in said if "the copy in the cache is used" in remark] == ([] if offline else said[:1])
    for name, parameter in load(str(model_folder)).model.named_parameters():
        assert parameter.equal(lm.model.get_parameter(name))


def test_a_cached_copy_that_lacks_a_tensor_is_refused_too(monkeypatch, cached):
    from safetensors.torch import load_file, save_file

    tensors = load_file(cached / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, cached / "model.safetensors", {"format": "pt"})
    answering(monkeypatch, http(GatedRepoError, 401))
    with pytest.raises(DctError, match=r"do not hold model\.norm\.weight"):
        load(ID, between=(1, 3))
