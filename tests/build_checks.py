"""What the tests of builds share: a small corpus on disk, and every figure of a bundle worked out anew from model and SAE.

`Reference` uses transformers' whole model with hooks, dense matrices and plain loops; nothing of the program but its types.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTEXT = 32
CATEGORIES = ("north", "south", "east")


def held_out(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 50 == 0


def write_corpus(path: Path, texts: list[str], n: int = 28) -> list[str]:
    """`n` texts as JSON lines in three categories: four of them held out, one of several windows with special tokens in it, one of a single word."""
    chosen = [t for t in texts if held_out(t)][:4] + [t for t in texts if not held_out(t) and len(t) < 350][: n - 6]
    chosen += [f"{texts[50]}<|endoftext|>{texts[51]} {texts[52]}<|endoftext|> 🦜 Ünïcode — “quoted”\n\tand tabs", "Yes"]
    rows = [{"id": f"r{i}", "text": text, "category": CATEGORIES[i % 3]} for i, text in enumerate(chosen)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return chosen


class Reference:
    """A bundle's figures by brute force, from the model's folder and the SAE's files alone."""

    def __init__(self, bundle, model_folder: Path, *, hook_block: int, bos: bool = True):
        self.bundle, self.bos = bundle, bos
        self.model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.block = self.model.base_model.get_submodule("h" if hasattr(self.model.base_model, "h") else "layers")[hook_block]
        folder = bundle.files / "sae"
        self.config = json.loads((folder / "cfg.json").read_text())
        self.W = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
        self.texts = bundle.documents["text"].to_pylist()
        self.ids = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in self.texts]
        self.capacity = self.config["metadata"]["context_size"] - bos
        self.rows = [self.residuals(ids) for ids in self.ids]
        self.counted = [self.counts(ids, rows) for ids, rows in zip(self.ids, self.rows, strict=True)]
        self.acts = [self.encode(rows) * mask[:, None] for rows, mask in zip(self.rows, self.counted, strict=True)]

    @torch.no_grad()
    def run(self, ids: list[int], edits=(lambda rows: rows,)) -> tuple[torch.Tensor, torch.Tensor]:
        """(residual at the hook, logits of each edit of it) of one window, without the BOS that is put in front."""
        lead, seen = int(self.bos), []

        def hook(_module, _args, out):
            residual = (out[0] if isinstance(out, tuple) else out).clone()
            seen.append(residual[0, lead:].clone())
            for row, edit in zip(residual, edits, strict=True):
                row[lead:] = edit(row[lead:])
            return (residual, *out[1:]) if isinstance(out, tuple) else residual

        handle = self.block.register_forward_hook(hook)
        logits = self.model(torch.tensor([[self.tokenizer.bos_token_id] * lead + ids] * len(edits))).logits[:, lead:]
        handle.remove()
        return seen[0], logits

    def residuals(self, ids: list[int]) -> torch.Tensor:
        """Each token from the earliest of the windows 0, 1/2, 1, 3/2 ... that holds it, the last one ending with the text."""
        out: dict[int, torch.Tensor] = {}
        start = 0
        while len(out) < len(ids):
            stop = min(start + self.capacity, len(ids))
            begin = max(0, stop - self.capacity)
            for offset, row in enumerate(self.run(ids[begin:stop])[0]):
                out.setdefault(begin + offset, row)
            start += self.capacity // 2
        return torch.stack([out[i] for i in range(len(ids))]).double() if ids else torch.zeros(0, self.W["W_dec"].shape[1]).double()

    def counts(self, ids: list[int], rows: torch.Tensor) -> torch.Tensor:
        special = torch.tensor([i in self.tokenizer.all_special_ids for i in ids], dtype=torch.bool)
        if not self.bos:
            special[:1] = True
        return ~special & (rows.norm(dim=1) <= 5 * self.bundle.manifest["median_norm"])

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Dense (n, d_sae)."""
        pre = (rows - self.W["b_dec"] if self.config["apply_b_dec_to_input"] else rows) @ self.W["W_enc"] + self.W["b_enc"]
        if self.config["architecture"] == "topk":
            best = pre.topk(self.config["k"], dim=1)
            pre = torch.zeros_like(pre).scatter(1, best.indices, best.values)
        return pre.relu()

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.W["W_dec"] + self.W["b_dec"]

    def reconstruction(self, documents: list[int]) -> tuple[float, float, int]:
        """(explained variance, L0, tokens) over all counted tokens of the documents."""
        x = torch.cat([self.rows[d][self.counted[d]] for d in documents])
        acts = torch.cat([self.acts[d][self.counted[d]] for d in documents])
        error = (x - self.decode(acts)).square().sum()
        return 1 - float(error / (x - x.mean(0)).square().sum()), float((acts > 0).sum() / len(x)), len(x)

    def losses(self, documents: list[int]) -> dict[str, float]:
        """Cross entropy over windows that do not overlap, where a counted token predicts a token of the same window."""
        mean = torch.cat([self.rows[d][self.counted[d]] for d in documents]).mean(0)
        changes = (lambda rows: rows, lambda rows: self.decode(self.encode(rows)), torch.zeros_like, lambda rows: mean.expand_as(rows))
        sums, n = torch.zeros(4, dtype=torch.float64), 0
        for d in documents:
            for start in range(0, len(self.ids[d]), self.capacity):
                ids = self.ids[d][start : start + self.capacity]
                mask = self.counts(ids, self.run(ids)[0].double())
                edits = [lambda rows, m=mask, f=f: torch.where(m[:, None], f(rows.double()), rows.double()).float() for f in changes]
                log_p = self.run(ids, edits)[1].double().log_softmax(-1)[:, :-1]
                loss = -log_p.gather(2, torch.tensor(ids[1:]).expand(4, -1)[:, :, None].long())[..., 0]
                sums += loss[:, mask[:-1]].sum(1)
                n += int(mask[:-1].sum())
        return dict(zip(("ce_clean", "ce_sae", "ce_zero", "ce_mean"), (sums / n).tolist(), strict=True)) | {"tokens_ce": n}

    def folded_lens(self) -> torch.Tensor:
        """(d_sae, vocab): decoder rows through the final norm's gain and the unembedding, centred over the vocabulary."""
        base = self.model.base_model
        gain = (base.ln_f if hasattr(base, "ln_f") else base.norm).weight.detach().double()
        rows = self.W["W_dec"]
        if hasattr(base, "ln_f"):
            rows = rows - rows.mean(1, keepdim=True)  # LayerNorm removes the mean, RMSNorm does not
        logits = (rows * gain) @ self.model.get_output_embeddings().weight.detach().double().T
        return logits - logits.mean(1, keepdim=True)


def dense_store(bundle) -> list[np.ndarray]:
    """What the bundle's store says of each document, dense (n, d_sae)."""
    found = []
    for a, b in zip(bundle.doc_offsets[:-1], bundle.doc_offsets[1:], strict=True):
        rows, out = bundle.store.rows(int(a), int(b)), np.zeros((int(b - a), bundle.d_sae))
        for i in range(len(rows)):
            features, values = rows.row(i)
            out[i, features] = values
        found.append(out)
    return found
