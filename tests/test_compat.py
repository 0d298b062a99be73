"""Private names of other libraries, each with what goes when it goes."""

import torch
from conftest import random_model
from safetensors import safe_open

import dct
from dct import compat


def test_tensors_are_written_under_transformers_own_names(tmp_path):
    """core_model_loading.revert_weight_conversion: for a model, and for one parameter of it alone."""
    model = random_model("mixtral")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    written = compat.disk_tensors(model, model.state_dict())
    assert written.keys() == held.keys(), "transformers writes other names than it converts to"
    assert all(torch.equal(written[name], values) for name, values in held.items())
    name = "model.layers.1.mlp.experts.down_proj"
    alone = compat.disk_tensors(model, {name: model.state_dict()[name]})
    assert sorted(alone) == [f"model.layers.1.block_sparse_moe.experts.{k}.w2.weight" for k in range(4)]


def test_hooks_that_change_a_run_are_known_by_their_package(make_lm):
    """Module._forward_hooks and _forward_pre_hooks."""
    lm = make_lm("gemma3")
    lm.layers[1].register_forward_hook(lambda *_: None)
    assert compat.hooks_of("dct", lm.model) == []
    with dct.steer(lm, torch.ones(lm.width), layer=2):
        assert compat.hooks_of("dct", lm.model)
    with dct.ablate(lm, torch.ones(lm.width)) as done:
        assert sorted(compat.hooks_of("dct", lm.model)) == sorted(done.projected)
    assert compat.hooks_of("dct", lm.model) == []
