"""What public networks of torchvision, timm and transformers lose at 0.5, with random weights.

Run: uv run --group peers python tests/benchmarks/networks.py

Prints Markdown: parameters before and after, the largest difference between the masked and the narrow network in the
self-check, seconds; or the error that says why a network cannot be pruned. `--only` takes parts of names; results are
kept as JSON lines with `--log`. `--export` writes every narrow network as ONNX and pt2, too, and says by how much the
files differ from it.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mlprank
from mlprank.artifact.export import export_model
from mlprank.calibration.data import Calibration

Made = tuple[nn.Module, Any]
"""A network and a batch of its inputs."""

VISION = """
    alexnet:64 vgg11_bn:64 resnet18:64 resnet50:64 resnext50_32x4d:64 wide_resnet50_2:64 densenet121:64 googlenet:96
    inception_v3:128 mobilenet_v2:64 mobilenet_v3_small:64 mnasnet0_5:64 shufflenet_v2_x0_5:64 squeezenet1_1:64
    efficientnet_b0:64 efficientnet_v2_s:64 convnext_tiny:64 regnet_x_400mf:64 regnet_y_400mf:64 vit_b_16:224
    swin_t:64 swin_v2_t:64 maxvit_t:224
"""
DENSE = "fcn_resnet50:64 deeplabv3_mobilenet_v3_large:64 lraspp_mobilenet_v3_large:64"
VIDEO = "r3d_18:32 mc3_18:32 r2plus1d_18:32"
TIMM = """
    resnet10t:64 resnetv2_50:64 resnet26d:64 botnet26t_256:256 halonet26t:256 beit_base_patch16_224:224
    cait_xxs24_224:224 coat_lite_tiny:224 coatnet_nano_rw_224:224 convit_tiny:224 convmixer_768_32:64
    convnextv2_atto:64 crossvit_9_240:240 cs3darknet_s:64 cspresnet50:64 darknet53:64 davit_tiny:224
    deit3_small_patch16_224:224 dla34:64 dm_nfnet_f0:64 dpn48b:64 edgenext_xx_small:64 efficientformer_l1:224
    efficientformerv2_s0:224 efficientvit_b0:64 efficientvit_m0:224 ese_vovnet19b_slim:64 eva02_tiny_patch14_224:224
    fasternet_t0:64 fastvit_t8:64 fbnetv3_b:64 focalnet_tiny_srf:64 gcresnext26ts:64 gcvit_xxtiny:224 gernet_s:64
    ghostnet_050:64 gmixer_12_224:224 gmlp_ti16_224:224 hardcorenas_a:64 hgnetv2_b0:64 hiera_tiny_224:224
    hrnet_w18_small:64 inception_next_atto:64 inception_resnet_v2:128 inception_v4:128 lambda_resnet26t:256
    lcnet_035:64 levit_128s:224 mambaout_femto:64 poolformer_s12:64 caformer_s18:64 convformer_s18:64
    mixer_s32_224:224 mixnet_s:64 mobilenetv4_conv_small:64 mobileone_s0:64 mobilevit_xxs:64 mobilevitv2_050:64
    mvitv2_tiny:224 nest_tiny:224 nextvit_small:64 nf_resnet26:64 pit_ti_224:224 pvt_v2_b0:64 rdnet_tiny:64
    regnetz_b16:64 repghostnet_050:64 repvgg_a0:64 repvit_m0_9:64 res2net50_26w_4s:64 resmlp_12_224:224 resnest14d:64
    rexnet_100:64 samvit_base_patch16_224:224 selecsls42:64 sequencer2d_s:224 seresnet18:64 shvit_s1:64 skresnet18:64
    starnet_s1:64 swiftformer_xs:64 swinv2_cr_tiny_224:224 tf_efficientnetv2_b0:64 tiny_vit_5m_224:224 tinynet_e:64
    tnt_s_patch16_224:224 tresnet_m:64 twins_pcpvt_small:224 twins_svt_small:224 visformer_tiny:224
    vit_tiny_patch16_224:224 vit_relpos_small_patch16_224:224 volo_d1_224:224 xception41:64 xcit_nano_12_p16_224:224
"""
WIDTHS = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
OF_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "ALBERT": ("AlbertModel", {"embedding_size": 32}),
    "BART": ("BartModel", {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
                           "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}),
    "BERT": ("BertForSequenceClassification", {}),
    "BLOOM": ("BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "CodeGen": ("CodeGenForCausalLM", {"n_embd": 64, "n_positions": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "DeBERTa v2": ("DebertaV2Model", {}),
    "DistilBERT": ("DistilBertModel", {"dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 4}),
    "ELECTRA": ("ElectraModel", {"embedding_size": 32}),
    "Falcon": ("FalconForCausalLM", {}),
    "Gemma": ("GemmaForCausalLM", {"head_dim": 16, "num_key_value_heads": 4}),
    "GPT-2": ("GPT2LMHeadModel", {"n_embd": 64, "n_positions": 64, "n_layer": 2, "n_head": 4}),
    "GPT-J": ("GPTJForCausalLM", {"n_embd": 64, "n_positions": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "GPT Neo": ("GPTNeoForCausalLM", {"num_layers": 2,
                                      "num_hidden_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {}),
    "Llama": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "Mistral": ("MistralForCausalLM", {"num_key_value_heads": 4}),
    "Mixtral": ("MixtralForCausalLM", {"num_key_value_heads": 4, "num_local_experts": 4}),
    "ModernBERT": ("ModernBertModel", {"pad_token_id": 0}),
    "MPNet": ("MPNetModel", {}),
    "OLMo": ("OlmoForCausalLM", {"num_key_value_heads": 4}),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 256, "word_embed_proj_dim": 64}),
    "Phi": ("PhiForCausalLM", {}),
    "Phi-3": ("Phi3ForCausalLM", {"num_key_value_heads": 4, "pad_token_id": 0}),
    "Qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 4}),
    "RoBERTa": ("RobertaModel", {}),
    "T5": ("T5ForConditionalGeneration", {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}),
    "T5, gated": ("T5ForConditionalGeneration", {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2,
                                                 "num_heads": 4,
                                                 "feed_forward_proj": "gated-gelu"}),
    "XLNet": ("XLNetModel", {"d_model": 64, "d_inner": 256, "n_layer": 2, "n_head": 4, "d_head": 16}),
}  # fmt: skip
OF_IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "BEiT": ("BeitForImageClassification", {"image_size": 32, "patch_size": 8}),
    "ConvNeXt": ("ConvNextForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "DINOv2": ("Dinov2Model", {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_attention_heads": 4}),
    "ResNet": ("ResNetForImageClassification", {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1],
                                                "embedding_size": 16}),
    "SegFormer": ("SegformerForSemanticSegmentation", {"hidden_sizes": [16, 32, 40, 64],
                                                      "num_attention_heads": [1, 2, 5, 8],
                                                       "decoder_hidden_size": 32}),
    "ViT": ("ViTForImageClassification", {"image_size": 32, "patch_size": 8}),
}  # fmt: skip


def sized(listing: str) -> Iterator[tuple[str, int]]:
    """Names and image sizes of a listing."""
    for entry in listing.split():
        name, _, size = entry.partition(":")
        yield name, int(size)


def of_torchvision(name: str, size: int, **fields: Any) -> Made:
    """A network of torchvision."""
    import torchvision

    return torchvision.models.get_model(name, weights=None, **fields), torch.randn(4, 3, size, size)


def of_video(name: str, size: int) -> Made:
    """A network that sees eight frames."""
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=10), torch.randn(4, 3, 8, size, size)


def of_timm(name: str, size: int) -> Made:
    """A network of timm."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10), torch.randn(4, 3, size, size)


def of_transformers(name: str, fields: dict[str, Any], *, text: bool) -> Made:
    """A small network of transformers, from its configuration."""
    import transformers

    cls = getattr(transformers, name)
    model = cls(cls.config_class(**({} if "hidden_sizes" in fields else WIDTHS) | fields))
    if not text:
        size = fields.get("image_size", 64)
        return model, {"pixel_values": torch.randn(4, 3, size, size)}
    ids = torch.randint(1, WIDTHS["vocab_size"], (4, 16))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, call | ({"decoder_input_ids": ids} if name.startswith("T5") else {})


def networks() -> dict[str, Callable[[], Made]]:
    """Every network by library and name."""
    made: dict[str, Callable[[], Made]] = {}
    for name, size in sized(VISION):
        made[f"torchvision/{name}"] = lambda name=name, size=size: of_torchvision(name, size, num_classes=10)
    for name, size in sized(DENSE):
        made[f"torchvision/{name}"] = lambda name=name, size=size: of_torchvision(
            name, size, num_classes=10, weights_backbone=None
        )
    for name, size in sized(VIDEO):
        made[f"torchvision/{name}"] = lambda name=name, size=size: of_video(name, size)
    for name, size in sized(TIMM):
        made[f"timm/{name}"] = lambda name=name, size=size: of_timm(name, size)
    for text, table in ((True, OF_TEXT), (False, OF_IMAGES)):
        for name, (cls, fields) in table.items():
            made[f"transformers/{name}"] = lambda cls=cls, fields=fields, text=text: of_transformers(
                cls, fields, text=text
            )
    return made


def exported(model: nn.Module, batch: Any) -> dict[str, str]:
    """By how much the files of a network differ from it, or why there is none."""
    call = next(iter(Calibration(batch, device=torch.device("cpu"), num_samples=4, seed=0, model=model)))
    said = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in ("onnx", "pt2"):
            try:
                said[kind] = f"{export_model(model, call, Path(directory, 'network'), kind).max_difference:.1g}"
            except (ValueError, TypeError) as error:
                said[kind] = str(error)
    return said


def tried(make: Callable[[], Made], amount: float, *, export: bool) -> dict[str, Any]:
    """Prune a network and say what came of it."""
    torch.manual_seed(0)
    model, batch = make()
    model.eval()
    before = sum(parameter.numel() for parameter in model.parameters())
    start = time.perf_counter()
    try:
        result = mlprank.prune(model, batch, amount=amount)
    except (ValueError, TypeError) as error:
        return {"before": before, "error": str(error), "seconds": time.perf_counter() - start}
    after = sum(parameter.numel() for parameter in result.model.parameters())
    return {
        "before": before,
        "after": after,
        "difference": result.max_difference,
        "seconds": time.perf_counter() - start,
        "whole": dict(result.whole),
        **(exported(result.model, batch) if export else {}),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names, as regular expressions")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--log", type=Path, help="append every result to this file of JSON lines")
    parser.add_argument("--export", action="store_true", help="write ONNX and pt2 files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lost = []
    columns = ["network", "parameters", "at 0.5", "less", "difference", "s"] + ["ONNX", "pt2"] * options.export
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, make in networks().items():
        if not any(re.search(part, name) for part in options.only):
            continue
        found = tried(make, options.amount, export=options.export)
        if options.log is not None:
            with options.log.open("a") as file:
                file.write(json.dumps({"name": name, **found}) + "\n")
        less = 1 - found["after"] / found["before"] if "after" in found else None
        lost.append(less)
        shown = (
            f"| {found['error'].splitlines()[0][:160]} | | |"
            if less is None
            else f"| {found['after']:,} | {less:.0%} | {found['difference']:.1g} |"
        )
        files = [f" {found.get(kind, '')[:160]} |" for kind in ("onnx", "pt2") if options.export]
        print(f"| {name} | {found['before']:,} {shown} {found['seconds']:.0f} |{''.join(files)}", flush=True)
    enough = sum(less is not None and less >= 0.3 for less in lost)
    failed = sum(less is None for less in lost)
    print(f"\n{enough} of {len(lost)} lose at least 30 %, {len(lost) - enough - failed} less, {failed} are refused.")


if __name__ == "__main__":
    main()
