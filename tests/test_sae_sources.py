"""Where SAEs come from: folders, and repositories in their published layouts on a loopback Hub, with the real client in this process."""

import re
import shutil

import pytest
import sae_layouts as layouts
import torch
from sae_checks import dense

from sae_explore.errors import ExploreError, InputError, SaeError, SourceError
from sae_explore.files import hub_download
from sae_explore.saes import sae_names
from sae_explore.saes.sae_formats import load_sae
from sae_explore.saes.sae_sources import GPT2_SAES, is_on_hub, resolve_sae

pytest_plugins = ["hub_fixtures"]

OAI = "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs"
X = torch.randn(20, layouts.D, generator=torch.Generator().manual_seed(1))


def repository(hub, name: str):
    """Its folder, with the commit that this program expects of it, if it expects one."""
    folder = hub.folder / "models" / name
    folder.mkdir(parents=True)
    if commit := sae_names.PINNED.get(name):
        (folder / ".commit").write_text(commit)
    return folder


@pytest.fixture
def res_jb(served):
    """The layout of the published SAEs: a folder a hook, statistics beside the weights."""
    folder = repository(served, GPT2_SAES)
    for layer in (0, 2, 3):
        name = f"blocks.{layer}.hook_resid_pre"
        layouts.write_old_saelens(folder / name, seed=layer, hook_point=name, hook_point_layer=layer)
    layouts.write_old_saelens(folder / "blocks.3.hook_resid_post", seed=9, hook_point="blocks.3.hook_resid_post", hook_point_layer=3)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return served


def fetched(log: list[tuple[str, str]]) -> set[str]:
    return {path.rpartition("/resolve/")[2].partition("/")[2] for verb, path in log if verb == "GET" and "/resolve/" in path}


def test_a_cold_cache_is_filled_with_what_is_needed_and_a_warm_one_asks_nothing(res_jb, tmp_path):
    said = []
    spec = f"{GPT2_SAES}:blocks.2.hook_resid_pre"
    found = resolve_sae(spec, report=lambda text, share: said.append((text, share)))
    assert (found.name, found.repository, found.revision) == (spec, GPT2_SAES, "57d08a4fd333fbf18caf3fbea63ceeb88e2f50d9")
    assert fetched(res_jb.log) == {"blocks.2.hook_resid_pre/cfg.json", "blocks.2.hook_resid_pre/sae_weights.safetensors"}
    assert found.path.is_relative_to(tmp_path / "cache")
    assert any(re.fullmatch(r"downloading the SAE .*: \d+ of \d+ MB", text) and 0 < share <= 1 for text, share in said if share)
    sae = load_sae(found.path, source=found.name, repository=found.repository)
    assert sae.spec.center_input
    assert torch.equal(sae.W_dec, load_sae(res_jb.folder / "models" / GPT2_SAES / "blocks.2.hook_resid_pre").W_dec)
    res_jb.log.clear()
    assert resolve_sae(spec) == found
    assert res_jb.log == []
    resolve_sae(f"{GPT2_SAES}:blocks.0.hook_resid_pre")
    assert fetched(res_jb.log) == {"blocks.0.hook_resid_pre/cfg.json", "blocks.0.hook_resid_pre/sae_weights.safetensors"}


def test_a_hook_chooses_the_folder_whatever_it_is_called(res_jb):
    for hook, folder in (
        ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_pre"),
        ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"),
        ("transformer.h.3", "blocks.3.hook_resid_post"),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"),
    ):
        assert resolve_sae(GPT2_SAES, hook=hook).name == f"{GPT2_SAES}:{folder}"
    with pytest.raises(InputError, match=f"{GPT2_SAES} holds 4 SAEs; name one of them: {GPT2_SAES}:blocks.0.hook_resid_pre, "):
        resolve_sae(GPT2_SAES)
    with pytest.raises(InputError, match="holds 4 SAEs"):
        resolve_sae(GPT2_SAES, hook="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match=r"holds no SAE in 'blocks\.7\.hook_resid_pre'; name one of them"):
        resolve_sae(f"{GPT2_SAES}:blocks.7.hook_resid_pre")


@pytest.mark.parametrize(
    ("repo", "folder", "write", "needed"),
    [
        (OAI, "v5_32k_layer_1.pt", layouts.write_openai_in_saelens, {"cfg.json", "sae_weights.safetensors"}),
        ("EleutherAI/sae-small-32x", "layers.1", layouts.write_sparsify, {"cfg.json", "sae.safetensors", "../config.json"}),
        ("google/gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_71", layouts.write_gemma_scope, {"params.npz"}),
        ("u/dictionaries", "resid_post_layer_1/trainer_0", lambda p: layouts.write_dictionary_learning(p, "BatchTopKSAE"), {"config.json", "ae.pt"}),
        ("u/openai", "resid_post_mlp_v5_32k/autoencoders/1.pt", layouts.write_openai, {""}),
    ],
)  # fmt: skip
def test_every_format_comes_from_its_published_layout(served, repo, folder, write, needed):
    home = repository(served, repo)
    equations = write(home / folder)
    (home / "config.json").write_text('{"ctx_len": 128, "model": "tiny"}')
    found = resolve_sae(f"{repo}:{folder}")
    parent = folder.rpartition("/")[0]
    expected = {f"{folder}/{name}".rstrip("/") if not name.startswith("../") else f"{parent}/{name[3:]}".lstrip("/") for name in needed}
    assert fetched(served.log) == expected
    sae = load_sae(found.path, source=found.name, repository=found.repository)
    assert (sae.spec.hook, sae.spec.source) == ("blocks.1.hook_resid_post", f"{repo}:{folder}")
    expected_acts = torch.from_numpy(equations(X.double().numpy())[0]).float()
    torch.testing.assert_close(dense(sae, X), expected_acts, rtol=1e-4, atol=2e-5)


def test_a_repository_of_one_sae_needs_no_folder(served):
    layouts.write_old_saelens(repository(served, "u/root"))
    layouts.write_gemma_scope(repository(served, "u/deep") / "layer_1/width_16k/average_l0_71")
    assert resolve_sae("u/root").name == "u/root"
    assert resolve_sae("u/deep").name == "u/deep:layer_1/width_16k/average_l0_71"
    (repository(served, "u/none") / "README.md").write_text("nothing")
    with pytest.raises(SaeError, match="the repository u/none on the Hub holds no SAE in a format that is read here"):
        resolve_sae("u/none")


def test_revisions_are_recorded_and_can_be_chosen(served):
    folder = repository(served, "u/changing")
    layouts.write_old_saelens(folder)
    first = resolve_sae("u/changing")
    assert re.fullmatch("[0-9a-f]{40}", first.revision)
    for path in folder.iterdir():
        path.unlink()
    layouts.write_old_saelens(folder, seed=1)
    assert resolve_sae("u/changing") == first  # what is cached is used without asking
    with pytest.raises(SourceError, match="the SAE u/changing cannot be read from the Hub: it has no such revision"):
        resolve_sae("u/changing@v9")
    assert resolve_sae(f"u/changing@{first.revision}") == first
    assert resolve_sae("u/changing@main") == first


WEIGHTS = "blocks.2.hook_resid_pre/sae_weights.safetensors"


def test_an_interrupted_download_goes_on_where_it_was(res_jb, monkeypatch, no_file_is_small):
    """A connection that breaks off half-way again and again is one sentence; the next attempt fetches the rest only."""
    spec = f"{GPT2_SAES}:blocks.2.hook_resid_pre"
    size = (res_jb.folder / "models" / GPT2_SAES / WEIGHTS).stat().st_size
    monkeypatch.setattr(hub_download, "_ATTEMPTS", 2)
    res_jb.truncate.add(WEIGHTS)
    with pytest.raises(SourceError) as caught:
        resolve_sae(spec)
    assert str(caught.value).startswith(f"the SAE {GPT2_SAES} cannot be read from the Hub: ")
    assert "\n" not in str(caught.value)
    sent = res_jb.sent
    assert sent >= size // 2 + size // 4  # the second attempt went on after the first
    res_jb.truncate.clear()
    found = resolve_sae(spec)
    assert (found.path / "sae_weights.safetensors").stat().st_size == size
    assert 0 < res_jb.sent - sent <= size // 4 + 2_000  # with the configuration
    assert torch.isfinite(load_sae(found.path).W_enc).all()
    assert not list(found.path.parents[2].rglob("*.sae-explore"))


def test_a_cancelled_download_goes_on_too(res_jb, no_file_is_small):
    def cancel(_text, share):
        if share and share > 0.5:
            raise KeyboardInterrupt

    spec, sent = f"{GPT2_SAES}:blocks.2.hook_resid_pre", res_jb.sent
    with pytest.raises(KeyboardInterrupt):
        resolve_sae(spec, report=cancel)
    (partial,) = [p for p in (res_jb.folder.parent / "cache").rglob("*.sae-explore") if p.stat().st_size > 2_000]
    had = partial.stat().st_size
    said = []
    load_sae(resolve_sae(spec, report=lambda _text, share: said.append(share)).path)
    assert min(share for share in said if share and share > 0.2) * (partial.with_suffix("").stat().st_size) >= had * 0.8
    assert res_jb.sent > sent


def test_a_damaged_partial_file_is_noticed_and_fetched_anew(res_jb, no_file_is_small, tmp_path):
    spec = f"{GPT2_SAES}:blocks.2.hook_resid_pre"
    first = resolve_sae(spec)
    blob = (first.path / "sae_weights.safetensors").resolve()
    whole = blob.read_bytes()
    shutil.rmtree(tmp_path / "cache")
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".sae-explore").write_bytes(bytes(1_000))
    with pytest.raises(SourceError, match="is not the file that the Hub named"):
        resolve_sae(spec)
    assert (resolve_sae(spec).path / "sae_weights.safetensors").read_bytes() == whole


def test_a_slow_hub_is_waited_for(res_jb):
    res_jb.delay = 0.15
    assert resolve_sae(f"{GPT2_SAES}:blocks.0.hook_resid_pre").revision


def test_without_the_hub_what_is_cached_is_used_and_the_rest_is_one_sentence(res_jb, monkeypatch):
    spec = f"{GPT2_SAES}:blocks.2.hook_resid_pre"
    found = resolve_sae(spec)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_sae(spec) == found
    assert resolve_sae(GPT2_SAES, hook="blocks.1.hook_resid_post") == found
    with pytest.raises(SourceError, match=f"^the SAE {GPT2_SAES} would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set"):
        resolve_sae(f"{GPT2_SAES}:blocks.0.hook_resid_pre")


def test_what_is_not_there_or_private_is_told_in_a_sentence(served, monkeypatch):
    with pytest.raises(SourceError, match=r"^the SAE u/absent is not on the Hub, or it is private; check its name, or set HF_TOKEN$"):
        resolve_sae("u/absent:x")
    layouts.write_old_saelens(repository(served, "u/secret"))
    served.private.add("u/secret")
    assert resolve_sae("u/secret").revision  # the token of the environment is shown
    shutil.rmtree(resolve_sae("u/secret").path.parents[1])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceError, match="the SAE u/secret is not on the Hub, or it is private"):
        resolve_sae("u/secret")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is not understood; give a Hub id"),
        ("gpt2", "SAE 'gpt2' is not understood; give a Hub id"),
        ("a/b:../../etc", "is not understood"),
        ("a/b:/etc", "is not understood"),
        ("a b/c", "is not understood"),
        ("./nowhere", "there is no SAE folder './nowhere'"),
        ("a/b/c", "there is no SAE folder 'a/b/c'"),
        ("/nowhere/6.pt", "there is no SAE folder '/nowhere/6.pt'"),
        ("a--b/c..d", "is no name of a repository on the Hub"),
        ("x\0/y", "is not understood"),
        ("~nobody-of-that-name/x", "there is no SAE folder"),
    ],
)
def test_what_names_no_sae_is_refused(served, spec, message):
    with pytest.raises(InputError, match=re.escape(message) if "'" in message else message):
        resolve_sae(spec)
    assert served.log == []


def test_local_saes_need_no_hub_and_change_their_fingerprint(tmp_path):
    layouts.write_old_saelens(tmp_path / "sae")
    layouts.write_openai(tmp_path / "6.pt")
    first = resolve_sae(str(tmp_path / "sae"))
    assert (first.path, first.name, first.repository, first.revision) == (tmp_path / "sae", str(tmp_path / "sae"), "", "")
    layouts.write_old_saelens(tmp_path / "sae", seed=1)
    assert resolve_sae(str(tmp_path / "sae")).fingerprint != first.fingerprint
    assert resolve_sae(str(tmp_path / "6.pt")).path == tmp_path / "6.pt"
    assert not is_on_hub(str(tmp_path / "sae"))
    assert is_on_hub(GPT2_SAES)
    assert is_on_hub(f"{GPT2_SAES}@main:blocks.7.hook_resid_pre")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExploreError, match="is no SAE folder"):
        resolve_sae(str(tmp_path / "empty"))
