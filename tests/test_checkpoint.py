"""`save`, `load`, `RunFolder` and their building blocks; faults are in `test_faults.py`."""

import ast
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyrovae as pv
from pyrovae import guides, likelihoods, networks, priors
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    RunLockedError,
    StateMismatchError,
    UnsafeFormatError,
    VersionMismatchError,
)
from pyrovae.model_file import load, save
from pyrovae.runtime.files import json_bytes, parse_json
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import RunFolder, check_unchanged, restore_stream
from pyrovae.runtime.state_tree import check_like, pack, unpack
from pyrovae.runtime.tensor_file import DTYPES, FORMAT, tensor_file
from tests.compat.freeze import log_p


def small_vae(**options):
    return pv.build((4,), **{"latent_dim": 2, "hidden": (8,), "seed": 0, **options})


def custom_vae(width=8, seed=0):
    """Return a VAE that `build` did not make."""
    with RandomStream(seed):
        q, p = guides.DiagonalNormal(2), likelihoods.Bernoulli(4)
        encoder = nn.Sequential(networks.mlp(4, q.num_features, hidden=(width,)), q)
        decoder = nn.Sequential(networks.mlp(2, p.num_features, hidden=(width,)), p)
        return pv.VAE(priors.VampPrior(encoder, torch.eye(4)), encoder, decoder)


def bits(tensor):
    """Return the tensor's bytes, so that NaN equals NaN and −0 differs from 0."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


def assert_equal_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert bits(a[name]) == bits(b[name]), name


# Models that `build` made.

X = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]])
THREE = {"num_categories": 3}
NEEDS = {
    "Categorical": THREE,
    "Columns": {
        "kinds": ["Normal", {"kind": "Ordinal", **THREE}, {"kind": "Categorical", **THREE}, "Beta"]
    },
}
BUILT = {
    **{f"prior {n}": {"prior": n} for n in priors.__all__ if n != "Fixed"},
    **{f"guide {n}": {"guide": n} for n in guides.__all__},
    **{
        f"likelihood {n}": {"likelihood": {"name": n, **NEEDS.get(n, {})}}
        for n in likelihoods.__all__
    },
    **{f"network {n}": {"network": n, "hidden": (8, 8)} for n in ("gated_mlp", "residual_mlp")},
    **{
        f"VampPrior, likelihood {n}": {
            "prior": "VampPrior",
            "likelihood": {"name": n, **NEEDS.get(n, {})},
        }
        for n in likelihoods.__all__
    },
    "VampPrior, bounds and weights": {
        "prior": {"name": "VampPrior", "bounds": (0.0, 2.0), "learn_weights": True}
    },
    "LearnedNormal, full": {"prior": {"name": "LearnedNormal", "full": True}},
}


@pytest.mark.parametrize("name", BUILT)
def test_built_models_are_rebuilt(name, tmp_path):
    vae = small_vae(data=X, **BUILT[name])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += torch.randn_like(parameter) / 10
    again = load(save(vae, tmp_path / "vae.safetensors"))
    assert_equal_bits(vae, again)
    assert repr(again) == repr(vae)
    assert again.spec["event_shape"] == [4]
    assert again is not vae


def test_a_convolutional_vae_is_rebuilt(tmp_path):
    vae = pv.build((1, 28, 28), network="conv", hidden=(4, 8), seed=0)
    assert_equal_bits(vae, load(save(vae, tmp_path / "vae.safetensors")))


def test_a_loaded_model_gives_the_same_densities_and_can_be_trained(tmp_path):
    vae = small_vae(prior="VampPrior", data=X)
    again = load(save(vae, tmp_path / "vae.safetensors"))
    assert log_p(again, X.round()).tolist() == log_p(vae, X.round()).tolist()
    settings_ = {"epochs": 2, "batch_size": 2, "seed": 3}
    pv.fit(vae, X.round(), **settings_)
    pv.fit(again, X.round(), **settings_)
    assert_equal_bits(vae, again)


def test_the_encoder_of_a_vamp_prior_is_stored_once_and_stays_shared(tmp_path):
    vae = small_vae(prior="VampPrior", data=X)
    path = save(vae, tmp_path / "vae.safetensors")
    again = load(path)
    assert again.prior.encoder is again.encoder
    with safetensors.safe_open(path, "pt") as file:
        names = set(file.keys())
        description = json.loads(file.metadata()["pyrovae"])
    aliases = description["aliases"]
    assert set(aliases) | names == set(vae.state_dict())
    assert not set(aliases) & names
    assert aliases["encoder.0.1.weight"] == "prior.encoder.0.1.weight"


def test_dtype_and_frozen_parameters_are_restored(tmp_path):
    vae = small_vae().double()
    vae.decoder.requires_grad_(False)
    again = load(save(vae, tmp_path / "vae.safetensors"))
    assert_equal_bits(vae, again)
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in vae.parameters()
    ]


def test_the_default_dtype_at_loading_does_not_matter(tmp_path):
    vae = small_vae(prior="VampPrior", data=X)
    path = save(vae, tmp_path / "vae.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal_bits(vae, load(path))
    finally:
        torch.set_default_dtype(torch.float32)


def test_save_and_load_draw_nothing_from_the_callers_generators(tmp_path):
    vae = small_vae(prior="VampPrior", data=X)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    load(save(vae, tmp_path / "vae.safetensors"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda vae: setattr(vae, "prior", priors.LearnedNormal(2)), "changed after"),
        (lambda vae: vae.encoder[0].insert(2, nn.Dropout(0.5)), "changed after"),
        (lambda vae: setattr(vae.prior, "encoder", vae.encoder), "changed after"),
        (lambda vae: vae.spec.update(likelihood={"name": "Normal", "scale": X}), "plain JSON"),
        (lambda vae: vae.spec.update(prior="Nothing"), "does not build"),
        (lambda vae: delattr(vae, "spec"), "not made by pyrovae.build"),
    ],
)
def test_a_model_that_its_specification_cannot_rebuild_needs_into(change, why, tmp_path):
    """Otherwise a different model would be loaded silently."""
    vae = small_vae()
    change(vae)
    path = save(vae, tmp_path / "vae.safetensors")
    with pytest.raises(StateMismatchError, match=why) as caught:
        load(path)
    assert "into=vae" in str(caught.value)
    other = small_vae()
    if "spec" in vars(other):
        change(other)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert load(path, into=other) is other
    assert_equal_bits(vae, other)


# Any model.


def test_any_model_is_loaded_into_one_of_the_same_parts(tmp_path):
    vae, other = custom_vae(seed=0), custom_vae(seed=1)
    path = save(vae, tmp_path / "vae.safetensors")
    identities = [id(p) for p in other.parameters()]
    assert load(path, into=other) is other
    assert_equal_bits(vae, other)
    assert [id(p) for p in other.parameters()] == identities  # an optimizer still holds them
    assert other.prior.encoder is other.encoder


def test_buffers_are_stored_and_non_persistent_ones_are_not(tmp_path):
    def module(value):
        m = nn.BatchNorm1d(2)
        m.register_buffer("kept", torch.full((2,), value))
        m.register_buffer("left", torch.full((2,), value), persistent=False)
        return m

    one, other = module(1.0), module(2.0)
    one.train()(torch.randn(5, 2))
    load(save(one, tmp_path / "m"), into=other)
    assert_equal_bits(one, other)
    assert other.num_batches_tracked == 1
    assert other.left.tolist() == [2.0, 2.0]


class Held(nn.Module):
    """A module with these parameters and buffers."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)


MISFITS = {
    "missing": (Held(a=torch.ones(2)), Held(a=torch.ones(2), b=torch.ones(1)), r"missing.*'b'"),
    "extra": (Held(a=torch.ones(2), b=torch.ones(1)), Held(a=torch.ones(2)), r"file only: 'b'"),
    "shape": (Held(a=torch.ones(2)), Held(a=torch.ones(3)), r"'a' is float32 \(2,\).*\(3,\)"),
    "dtype": (Held(a=torch.ones(2)), Held(a=torch.ones(2).double()), "float32.*float64"),
    "tied in the file": (
        Held(**dict.fromkeys("ab", nn.Parameter(torch.ones(2)))),
        Held(a=nn.Parameter(torch.ones(2)), b=nn.Parameter(torch.ones(2))),
        "'a' and 'b' are one tensor only in the file",
    ),
    "tied in the model": (
        Held(a=nn.Parameter(torch.ones(2)), b=nn.Parameter(torch.ones(2))),
        Held(**dict.fromkeys("ab", nn.Parameter(torch.ones(2)))),
        "'a' and 'b' are one tensor only in the model",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_mismatch_is_named_and_changes_nothing(name, tmp_path):
    saved, other, message = MISFITS[name]
    path = save(saved, tmp_path / "m")
    for tensor in other.state_dict().values():
        tensor.fill_(7.0)
    with pytest.raises(StateMismatchError, match=message) as caught:
        load(path, into=other)
    assert all((t == 7.0).all() for t in other.state_dict().values())
    assert len(str(caught.value).splitlines()) <= 6


def test_tied_tensors_fit_in_any_order_of_names(tmp_path):
    shared, other = torch.ones(2), torch.zeros(2)
    path = save(Held(a=shared, b=shared), tmp_path / "m")
    module = Held(b=other, a=other)
    load(path, into=module)
    assert module.a is module.b
    assert other.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Held(a=torch.ones(2, dtype=torch.complex128)), "complex128"),
        (Held(a=torch.eye(2).to_sparse()), "sparse"),
        (Held(**{"a\nb": torch.ones(1)}), "printable"),
        (Held(**{"a\0b": torch.ones(1)}), "printable"),
        (Held(**{"ü" * 10**6: torch.ones(1)}), "1 to 1,000"),
        (Held(__metadata__=torch.ones(1)), "cannot name"),
        (nn.LazyLinear(2), "Uninitialized"),
    ],
)
def test_states_that_no_file_can_hold_are_refused_before_writing(module, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        save(module, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["", "   ", "a\0b", "a\nb", "a\x1bb", "ü" * 10**6, "a" * 251, None, 3, b"bytes"]
)
def test_invalid_paths_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (lambda p: save(small_vae(), p), load, RunFolder):
        with pytest.raises(ConfigError, match="path = ") as caught:
            use(name)
        assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_nan_weights_are_not_saved(tmp_path):
    vae = small_vae()
    vae.decoder[0][-1].bias.data[1] = torch.nan
    path = save(small_vae(), tmp_path / "vae")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"decoder\.0\.\d\.bias has NaN"):
        save(vae, path)
    assert path.read_bytes() == before


def test_any_reader_of_safetensors_opens_a_model(tmp_path):
    vae = custom_vae()
    read = safetensors.torch.load_file(save(vae, tmp_path / "vae.safetensors"))
    for name, tensor in read.items():
        assert torch.equal(tensor, vae.state_dict()[name])


def test_saving_over_a_mapped_file_does_not_change_the_mapped_tensors(tmp_path):
    first, second = small_vae(seed=0), small_vae(seed=1)
    path = save(first, tmp_path / "vae")
    with safetensors.safe_open(path, "pt") as file:
        mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        first.load_state_dict(mapped, assign=True)
        save(second, path)
        save(first, path)  # from the mapped first content of the file
        for name, tensor in mapped.items():
            assert torch.equal(tensor, small_vae(seed=0).state_dict()[name])
    assert_equal_bits(load(path), small_vae(seed=0))


def test_a_file_of_a_later_format_names_both_versions(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.runtime.tensor_file.FORMAT", FORMAT + 1)
    monkeypatch.setattr("pyrovae._version.__version__", "9.9.9")
    path = save(small_vae(), tmp_path / "vae")
    with RunFolder(tmp_path / "run") as run:
        monkeypatch.setattr("pyrovae.runtime.run_folder.FORMAT", FORMAT + 1)
        run.save_step(1, {})
    monkeypatch.undo()
    with pytest.raises(
        VersionMismatchError, match=rf"format {FORMAT + 1}.*'9\.9\.9'.*{pv.__version__}"
    ):
        load(path)
    with RunFolder(tmp_path / "run", resume=True) as run, pytest.raises(VersionMismatchError):
        run.newest_complete()


# Properties.

TENSORS = st.builds(
    lambda shape, dtype, seed: (
        (
            torch.randint(
                256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(seed)
            ).to(torch.uint8)
            if dtype is not torch.bool
            else torch.randint(2, (*shape, 1), generator=torch.Generator().manual_seed(seed)).to(
                torch.uint8
            )
        )
        .view(dtype)
        .reshape(shape)
    ),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31),
)
NAMES = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="."), min_size=1, max_size=8
).filter(lambda name: name != "__metadata__" and not hasattr(nn.ModuleDict, name))


def without_nan(tensor):
    if not tensor.is_floating_point():
        return tensor
    wide = tensor.float() if tensor.element_size() < 4 else tensor
    return torch.where(wide.isnan(), 0.0, wide).to(tensor.dtype)


@st.composite
def modules(draw):
    """Nested modules with odd names, all dtypes, empty, 0-d, shared and strided tensors."""
    pool = [without_nan(t) for t in draw(st.lists(TENSORS, min_size=1, max_size=4))]
    root = nn.Module()
    for path in draw(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=6)):
        module = root
        for name in path[:-1]:
            if name not in module._modules:
                if name in module._buffers:
                    break
                module.add_module(name, nn.Module())
            module = module._modules[name]
        else:
            if not hasattr(module, path[-1]):
                tensor = draw(st.sampled_from(pool))
                is_strided = draw(st.booleans())
                module.register_buffer(
                    path[-1], tensor.mT if is_strided and tensor.dim() > 1 else tensor
                )
    return root


def blank(module):
    """Return a module of the same structure and shared tensors, filled with zeros."""
    copies = {}

    def of(m):
        new = nn.Module()
        for name, t in m._buffers.items():
            key = (t.data_ptr() or id(t), t.shape, t.stride(), t.dtype)
            copies.setdefault(key, torch.zeros_like(t))
            new.register_buffer(name, copies[key])
        for name, child in m._modules.items():
            new.add_module(name, of(child))
        return new

    return of(module)


@settings(max_examples=60, deadline=None)
@given(modules())
def test_load_undoes_save(module):
    other = blank(module)
    with tempfile.TemporaryDirectory() as folder:
        assert load(save(module, Path(folder, "m")), into=other) is other
    assert_equal_bits(module, other)


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
ARRAYS = st.sampled_from(["<f8", ">f4", "u4", "i8", "?", "u1"]).map(
    lambda dtype: np.arange(6).reshape(2, 3)[:, ::2].astype(dtype)
)
TREES = st.recursive(
    SCALARS | TENSORS | ARRAYS,
    lambda leaves: (
        st.lists(leaves, max_size=3)
        | st.lists(leaves, max_size=3).map(tuple)
        | st.dictionaries(NAMES | st.integers(-3, 3), leaves, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
    elif isinstance(a, np.ndarray):
        assert a.dtype.newbyteorder("=") == b.dtype
        assert a.tolist() == b.tolist()
    elif isinstance(a, list | tuple):
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    elif isinstance(a, dict):
        assert [(type(k), k) for k in a] == [(type(k), k) for k in b]
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b or a != a


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_unpack_undoes_pack_through_both_files(tree):
    tensors, plain = pack(tree)
    tensors = safetensors.torch.load(tensor_file(tensors, {}))
    assert_same(tree, unpack(tensors, parse_json(json_bytes(plain), Path("x"))))


def test_pack_stores_a_tensor_that_occurs_twice_once():
    t = torch.ones(2)
    tensors, plain = pack({"a": t, "b": [t, t.detach()], "c": t[:1]})
    assert list(tensors) == ["a", "c"]
    state = unpack(tensors, plain)
    assert state["a"] is state["b"][0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"f": lambda: 0}, "f is a function"),
        ({"a": [{"b": {1, 2}}]}, "a/0/b is a set"),
        ({(1, 2): 0}, "key of type tuple"),
        ({"a": np.array([object()])}, "array of object"),
        ({"..": torch.ones(1)}, "cannot name"),
    ],
)
def test_pack_refuses_values_that_would_need_pickling(state, message):
    with pytest.raises(ConfigError, match=message):
        pack(state)


@pytest.mark.parametrize(
    "plain",
    [
        {"tensor": "x"},
        {"tensor": ["a"]},
        {"array": None},
        {"tuple": 3},
        {"dict": []},
        {"items": [[1]]},
        {"items": [[[1], 2]]},
        {"unknown": 1},
        {},
        {"tensor": "a", "tuple": []},
    ],
)
def test_unpack_refuses_values_that_pack_never_writes(plain):
    with pytest.raises(CorruptCheckpointError, match="not part of a state"):
        unpack({"a": torch.ones(1)}, [plain])


# Optimizers, schedulers and generators.


def problem(seed=0):
    with RandomStream(seed):
        model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True, amsgrad=True)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=20)


def advance(model, optimizer, scheduler, stream, n):
    for _ in range(n):
        with stream:
            loss = model(torch.randn(4, 3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def test_optimizer_scheduler_and_stream_continue_bit_for_bit(tmp_path):
    whole, stream = problem(), RandomStream(5)
    advance(*whole, stream, 10)
    half, half_stream = problem(), RandomStream(5)
    advance(*half, half_stream, 4)
    with RunFolder(tmp_path / "run") as run:
        states = [part.state_dict() for part in half]
        run.save_step(4, {"parts": states, "stream": half_stream.state})
    other, other_stream = problem(1), RandomStream(6)
    with RunFolder(tmp_path / "run", resume=True) as run:
        state = run.newest_complete().state
    for part, saved in zip(other, state["parts"], strict=True):
        part.load_state_dict(saved)
    restore_stream(other_stream, state["stream"])
    advance(*other, other_stream, 6)
    assert_equal_bits(whole[0], other[0])
    assert_same(whole[1].state_dict(), other[1].state_dict())
    assert_same(whole[2].state_dict(), other[2].state_dict())
    assert_same(stream.state, other_stream.state)


@pytest.mark.parametrize(
    "state",
    [
        None,
        (1, 2),
        (torch.zeros(5, dtype=torch.uint8), *RandomStream(0).state[1:]),
        (torch.zeros_like(RandomStream(0).state[0]), *RandomStream(0).state[1:]),
        (
            RandomStream(0).state[0],
            ("MT", *RandomStream(0).state[1][1:]),
            *RandomStream(0).state[2:],
        ),
        (*RandomStream(0).state[:2], (3, (-1,) * 625, None), []),
    ],
)
def test_an_invalid_random_state_changes_nothing(state):
    stream = RandomStream(1)
    before, callers = stream.state, torch.get_rng_state()
    with pytest.raises(StateMismatchError):
        restore_stream(stream, state)
    assert stream.state is before
    assert torch.equal(torch.get_rng_state(), callers)


def test_check_like_names_the_place():
    expected = {"w": torch.ones(2), "m": [1, (np.ones(2), None)]}
    check_like({"w": torch.zeros(2), "m": [5, (np.zeros(2), 3)]}, expected)
    for found, message in [
        ({"m": expected["m"]}, r"missing in the file: 'w'"),
        ({**expected, "z": 1}, r"file only: 'z'"),
        ({**expected, "w": torch.ones(3)}, r"state/w: float32 \(3,\).*float32 \(2,\)"),
        ({**expected, "m": [1.0, expected["m"][1]]}, "state/m/0: a float"),
        ({**expected, "m": (1, 2)}, "state/m: not a list of 2"),
        (None, "missing"),
    ]:
        with pytest.raises(StateMismatchError, match=message):
            check_like(found, expected)


def test_check_unchanged_lists_what_differs():
    now = {"rows": 59_999, "dtype": "float32"}
    with pytest.raises(
        StateMismatchError, match=r"training data changed.*rows was '60000', is '59999'"
    ):
        check_unchanged({"rows": 60_000, "dtype": "float32"}, now, name="training data", fix="")


# The run folder.


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_at_least_two_steps_are_kept_and_the_newest_is_found(tmp_path):
    with RunFolder(tmp_path, keep=3) as run:
        assert run.newest_complete() is None
        assert run.newest_path is None
        for step in (5, 10, 99_999_999, 123_456_789, 1_000_000_000):
            assert run.save_step(step, {"step": step}).is_dir()
            assert run.newest_complete().step == step
        assert run.newest_path.name == "step-1000000000"
    steps = ["step-1000000000", "step-123456789", "step-99999999"]
    assert names(tmp_path) == sorted(["lock", *steps])
    with pytest.raises(ConfigError, match="keep"):
        RunFolder(tmp_path, keep=1)


def test_a_step_that_is_saved_again_replaces_nothing_before_it_is_complete(tmp_path):
    with RunFolder(tmp_path) as run:
        for value in range(3):
            run.save_step(7, {"value": value})
            assert run.newest_complete().state == {"value": value}
    assert names(tmp_path) == ["lock", "step-00000007.2", "step-00000007.3"]


def test_a_diverged_step_is_kept_separately(tmp_path):
    with RunFolder(tmp_path) as run:
        run.save_step(1, {"good": True})
        for step in (2, 3):
            path = run.save_step(step, {"good": False}, is_diverged=True)
        assert run.newest_complete().state == {"good": True}
        assert run.newest_path.name == "step-00000001"
    assert names(tmp_path) == ["diverged-00000003", "lock", "step-00000001"]
    assert json.loads((path / "manifest.json").read_text())["is_diverged"] is True


def test_a_folder_with_steps_needs_resume(tmp_path):
    with RunFolder(tmp_path) as run:
        run.save_step(1, {})
    with pytest.raises(ConfigError, match="resume=True"):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path, resume=True) as run:  # and the lock was given back
        assert run.newest_complete().step == 1


def test_steps_are_saved_only_inside_the_block(tmp_path):
    with RunFolder(tmp_path) as run:
        pass
    with pytest.raises(ConfigError, match="with RunFolder"):
        run.save_step(1, {})


def test_a_failed_state_leaves_no_trace(tmp_path):
    with RunFolder(tmp_path) as run:
        with pytest.raises(ConfigError, match="a function"):
            run.save_step(1, {"f": lambda: 0})
        assert names(tmp_path) == ["lock"]


def test_other_files_are_kept_and_leftovers_removed(tmp_path):
    mine = ["summary.json", "notes.tmp", "step-1", "samples.png"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".model.safetensors.tmp").write_text("half")
    for name in ("step-00000002.tmp", "diverged-00000002.3.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("half")
    with RunFolder(tmp_path) as run:
        run.save_step(1, {})
    assert names(tmp_path) == sorted([*mine, "lock", "step-00000001"])


def test_the_manifest_agrees_with_sha256sum(tmp_path):
    from hashlib import sha256

    with RunFolder(tmp_path) as run:
        path = run.save_step(1, {"w": torch.ones(3), "epoch": 2})
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert names(path) == ["manifest.json", "state.json", "tensors.safetensors"]
    for name, listed in files.items():
        data = (path / name).read_bytes()
        assert listed == {"bytes": len(data), "sha256": sha256(data).hexdigest()}


def test_the_errors_are_runtime_errors_and_can_be_copied():
    import copy

    error = RunLockedError("message", 12, "host", "now")
    again = copy.copy(error)
    assert (str(again), again.pid, again.host, again.start) == ("message", 12, "host", "now")
    kinds = (
        CorruptCheckpointError,
        UnsafeFormatError,
        VersionMismatchError,
        StateMismatchError,
        RunLockedError,
    )
    assert all(issubclass(kind, CheckpointError) for kind in kinds)
    assert issubclass(CheckpointError, RuntimeError)


# Static: nothing in the package can unpickle or evaluate.

PACKAGE = Path(pv.__file__).parent
FILE_CODE = [
    *(PACKAGE / "runtime").glob("*.py"),
    PACKAGE / "model_file.py",
    PACKAGE / "training" / "checkpointer.py",
]
BANNED_MODULES = {
    "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle", "_pickle"
}  # fmt: skip


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_in_the_package_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {a.name.split(".")[0] for a in node.names} & BANNED_MODULES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in BANNED_MODULES
    for function, keywords in calls(tree):
        assert function not in {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}
        assert keywords.get("allow_pickle", "False") == "False"
        if path in FILE_CODE:
            assert "importlib" not in function


def test_no_bare_assert_guards_the_files():
    for path in FILE_CODE:
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text())))


def test_success_is_silent(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(save(small_vae(), tmp_path / "vae"))
        with RunFolder(tmp_path / "run") as run:
            run.save_step(1, {"w": torch.ones(1)})
            run.newest_complete()
    assert capsys.readouterr() == ("", "")
    assert os.listdir(tmp_path / "run") != []


def test_empty_arrays_of_several_shapes_are_restored():
    """Each becomes a temporary tensor, whose id the next one may get."""
    shapes = [(0, 3), (0, 5), (2, 0), (0,)]
    back = unpack(*pack([np.zeros(shape, dtype="float32") for shape in shapes]))
    assert [array.shape for array in back] == shapes


def laplace_prior():
    laplace = lambda loc, scale: dist.Laplace(loc, scale).to_event(1)  # noqa: E731
    return pv.priors.Fixed(laplace, loc=torch.zeros(2), scale=torch.ones(2))


OTHER_PARTS = {
    "guide": ({"guide": "Laplace"}, r"encoder\.1 is a Laplace in the model, but .?DiagonalNormal"),
    "likelihood": ({"likelihood": "ContinuousBernoulli"}, r"decoder\.1 is a ContinuousBernoulli"),
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_numbers_of_a_different_part_are_refused(name, tmp_path):
    """Names, shapes and dtypes are the same; the densities are not."""
    settings, match = OTHER_PARTS[name]
    path = pv.save(pv.build((4,), hidden=(8,)), tmp_path / "a.safetensors")
    other = pv.build((4,), hidden=(8,), **settings)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(StateMismatchError, match=match):
        pv.load(path, into=other)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


def test_numbers_of_a_custom_part_are_refused_by_a_part_of_pyrovae(tmp_path):
    like = pv.build((4,), hidden=(8,))
    saved = pv.VAE(laplace_prior(), like.encoder, like.decoder)
    path = pv.save(saved, tmp_path / "a.safetensors")
    with pytest.raises(StateMismatchError, match="prior is a StandardNormal in the model, but"):
        pv.load(path, into=like)
    assert pv.load(path, into=pv.VAE(laplace_prior(), like.encoder, like.decoder))


def test_arguments_taken_from_data_are_stored_by_shape_and_range(tmp_path):
    """So that `load` can build a part of that size without knowing which class it is."""
    vae = small_vae(prior="VampPrior", data=X)
    assert vae.data_spec == {"prior": {"pseudo_inputs": {"shape": [3, 4], "range": [0.0, 1.0]}}}
    assert load(save(vae, tmp_path / "vae")).data_spec == vae.data_spec
    chosen = small_vae(prior={"name": "VampPrior", "pseudo_inputs": X[:2]})
    assert chosen.data_spec == {}
    assert torch.equal(chosen.prior.pseudo_inputs, X[:2])
    with pytest.raises(ConfigError, match=r"prior starts from data, .*\nWrite build\(…, data=x_tr"):
        small_vae(prior="VampPrior")
