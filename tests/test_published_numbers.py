"""Numbers that others have published for GPT-2 and its SAEs, worked out with this program. They need the Hub: `pytest -m network`.

The tests' own process keeps away from the network (see conftest), so the numbers come from a Python of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_explore.files import hub

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from sae_explore.texts.embedded import embedded_rows
from sae_explore.features.lens import lens_matrix
from sae_explore.models.model import load_full_model, load_model
from sae_explore.models.model_sources import GPT2, resolve_model
from sae_explore.saes.sae_formats import load_sae
from sae_explore.saes.sae_sources import GPT2_SAES, resolve_sae
from sae_explore.types import HookPoint

BOS = 50256
source = resolve_model(GPT2, models=Path("none"))

def model_at(hook):
    return load_model(source.folder, hook=HookPoint.parse(hook), name=GPT2, revision=source.revision)

def sae_at(spec, center="auto"):
    found = resolve_sae(spec)
    return load_sae(found.path, source=found.name, repository=found.repository, center=center)

def acts(sae, model, text):
    ids = [BOS, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        found, _ = sae.encode(model.residual(torch.tensor([ids]))[0])
    rows = torch.zeros(len(ids), sae.spec.d_sae)
    rows[torch.repeat_interleave(torch.arange(len(ids)), found.offsets.diff()), found.features] = found.values
    return rows

def l0(sae, model):
    counts = [(acts(sae, model, text[:400])[1:] > 0).sum(1).float() for text in texts]
    return float(torch.cat(counts).mean())

texts = [document.text for document in embedded_rows()][::40]
result = {}
full = load_full_model(source.folder)
ids = torch.tensor([[BOS, *model_at("blocks.0.hook_resid_pre").tokenizer("Hello world!")["input_ids"]]])
with torch.inference_mode():
    result["loss"] = float(full(input_ids=ids, labels=ids).loss)

model = model_at("blocks.7.hook_resid_pre")
sae = sae_at(GPT2_SAES + ":blocks.7.hook_resid_pre", center="no")
rows = acts(sae, model, "Hello, world!")
result["hello"] = {"bos": rows[0, 9663], "Hello": [rows[1, 16653], rows[1, 13715], rows[1, 0]], ",": rows[2, 2494], " world": rows[3, 22763],
                   "!": rows[4, 13413]}
result["top"] = rows.argmax(1).tolist()
unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
result["cosines"] = [float(unit[5] @ unit[15785]), float(unit[5] @ unit[9213])]
centred = sae_at(GPT2_SAES + ":blocks.7.hook_resid_pre")
result["centred"] = centred.spec.center_input

model = model_at("blocks.10.hook_resid_pre")
rows = acts(sae_at(GPT2_SAES + ":blocks.10.hook_resid_pre", center="no"), model, "My cat is sleeping on the couch.")
result["cat"] = [int(rows[1:, 16899].argmax()), float(rows[1:, 16899].max())]

model = model_at("blocks.0.hook_resid_pre")
first = sae_at(GPT2_SAES + ":blocks.0.hook_resid_pre")
lens = first.W_dec[:4] @ lens_matrix(model.unembedding, "folded")
token = lambda text: model.tokenizer(text)["input_ids"][0]
result["lens"] = [float(lens[f, token(t)]) for f, t in ((0, " Brigade"), (0, " brigade"), (2, " MRI"), (3, " contingent"))]
result["first tokens"] = [int(lens[f].argmax()) == token(t) for f, t in ((0, " Brigade"), (2, " MRI"), (3, " contingent"))]

result["l0"] = {layer: l0(sae_at(f"{GPT2_SAES}:blocks.{layer}.hook_resid_pre"), model_at(f"blocks.{layer}.hook_resid_pre")) for layer in range(12)}
oai = sae_at("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs:v5_32k_layer_6.pt")
result["oai"] = [oai.spec.architecture, oai.spec.k, oai.spec.normalise, oai.spec.d_sae, l0(oai, model_at(oai.spec.hook))]
print(json.dumps(result, default=float))
"""


@pytest.fixture(scope="module")
def numbers() -> dict:
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        if problem := hub.hub_problem(refresh=True):
            pytest.skip(f"the Hugging Face Hub is needed, but {problem}")
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_loss_of_gpt2(numbers):
    assert numbers["loss"] == pytest.approx(5.33186, abs=4e-5)


def test_features_on_hello_world(numbers):
    """7-res-jb, input not centred, decoder norms folded."""
    hello = numbers["hello"]
    assert hello["Hello"] == pytest.approx([46.48, 43.22, 0.0477], abs=0.1)
    assert hello["Hello"][2] == pytest.approx(0.0477, abs=0.005)
    assert hello[","] == pytest.approx(33.58, abs=0.1)
    assert hello[" world"] == pytest.approx(26.63, abs=0.1)
    assert hello["!"] == pytest.approx(25.00, abs=0.1)
    assert hello["bos"] == pytest.approx(941.3, abs=1.0)
    assert numbers["top"] == [9663, 16653, 2494, 22763, 13413]
    assert numbers["centred"] is True  # as this program reads it unless told


def test_a_cat(numbers):
    position, value = numbers["cat"]
    assert position == 1  # " cat"
    assert 54 <= value <= 61.5


def test_decoder_cosines(numbers):
    assert numbers["cosines"] == pytest.approx([0.61019, 0.50317], abs=1e-4)


def test_folded_lens(numbers):
    assert numbers["lens"] == pytest.approx([3.753, 3.063, 3.121, 4.019], abs=5e-3)
    assert numbers["first tokens"] == [True, True, True]


def test_active_latents_by_layer(numbers):
    """On other texts than those that the published figures are of."""
    for layer, published in enumerate((10, 10, 18, 23, 31, 41, 51, 54, 60, 70, 52, 56)):
        assert numbers["l0"][str(layer)] == pytest.approx(published, rel=0.4), layer
    *spec, l0 = numbers["oai"]
    assert spec == ["topk", 32, "layer_norm", 32_768]
    assert 0 < l0 <= 32
