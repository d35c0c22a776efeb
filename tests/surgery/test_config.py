"""Networks of Hugging Face: pruned as they come, and their configurations say what they have become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mlprank

transformers = pytest.importorskip("transformers")

IDS = torch.randint(1, 50, (6, 12), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
IMAGES = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "BERT": ("BertForMaskedLM", {}, TEXT, "intermediate_size"),
    "ViT": ("ViTForImageClassification", {"image_size": 16, "patch_size": 4}, IMAGES, "intermediate_size"),
    "GPT-2": ("GPT2LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 4, "eos_token_id": 1, "bos_token_id": 1},
              TEXT, "n_inner"),
    "Llama": ("LlamaForCausalLM", {"num_key_value_heads": 2}, TEXT, "intermediate_size"),
    "T5": (
        "T5ForConditionalGeneration",
        {"d_model": 24, "d_kv": 6, "d_ff": 96, "num_layers": 2, "num_heads": 4},
        TEXT | {"decoder_input_ids": IDS},
        "d_ff",
    ),
    "DistilBERT": ("DistilBertForMaskedLM", {"dim": 24, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
                   TEXT, "hidden_dim"),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, dict[str, Any], str]:
    cls, fields, batch, field = NETWORKS[name]
    torch.manual_seed(1)
    network = getattr(transformers, cls)
    return network(network.config_class(**SIZES | fields)).eval(), batch, field


@pytest.mark.parametrize("name", NETWORKS)
def test_feed_forward_layers_of_hugging_face_are_pruned_and_their_config_follows(name: str, tmp_path: Path) -> None:
    network, batch, field = made(name)
    result = mlprank.prune(network, transformers.BatchEncoding(batch), amount=0.5)
    assert getattr(result.model.config, field) == 48
    assert getattr(network.config, field) in (96, None)
    assert not any("config" in note for note in result.notes)
    result.model.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, got = (each(**batch).logits for each in (result.model, loaded))
        masked = result.masked(**batch, use_cache=False).logits if name == "GPT-2" else result.masked(**batch).logits
    assert torch.equal(expected, got)
    assert float((masked - expected).abs().max()) < 1e-5


def test_a_saved_network_of_hugging_face_states_its_widths_when_it_is_loaded(tmp_path: Path) -> None:
    network, batch, _ = made("Llama")
    result = mlprank.prune(network, batch, amount=0.5)
    result.save(tmp_path / "pruned.ckpt")
    loaded = mlprank.load_pruned(tmp_path / "pruned.ckpt", made("Llama")[0])
    assert loaded.config.intermediate_size == 48
    assert torch.equal(loaded(**batch).logits, result.model(**batch).logits)


def test_layers_of_several_widths_are_no_config_and_a_note_says_so() -> None:
    network, batch, _ = made("BERT")
    last = "bert.encoder.layer.1.intermediate.dense"
    result = mlprank.prune(network, batch, amount={"*": 0.5, last: 0.25})
    assert result.model.config.intermediate_size == 96
    assert any("config cannot state its widths" in note for note in result.notes)
