"""Writes and reads the demo model as a GGUF file of the `llama` architecture."""

import gguf
import torch

from model import Config, Model
from tokenizer import BOS_ID, EOS_ID, UNKNOWN_ID, Tokenizer

ARCHITECTURE = "llama"
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def write(path, model, tokenizer, weight_type="f16"):
    """Writes model and tokenizer to `path`; matrices in `weight_type`, norms in F32.

    The parameter names of Model are the tensor names of the file, and its rotary pairs are
    neighbouring elements, so that nothing is renamed or permuted. There is no output.weight: by
    the convention of the format the token embedding is the output matrix then.
    """
    tensor_type, file_type = TYPES[weight_type]
    config = model.config
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name("Tandem demo")
    writer.add_description("Sums, key-value recall and short stories, trained on generated text")
    writer.add_license("apache-2.0")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    writer.add_unk_token_id(UNKNOWN_ID)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)

    for name, weight in model.state_dict().items():
        array = weight.detach().float().numpy()
        kind = tensor_type if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    """Model (weights widened to F32) and tokenizer, from nothing but the file at `path`."""
    reader = gguf.GGUFReader(path)

    def field(key):
        return reader.fields[key].contents()

    def dimension(key):
        return field(f"{ARCHITECTURE}.{key}")

    if field("general.architecture") != ARCHITECTURE:
        raise ValueError(f"{path}: architecture must be {ARCHITECTURE}")
    tokenizer = Tokenizer(
        field("tokenizer.ggml.tokens"),
        field("tokenizer.ggml.scores"),
        field("tokenizer.ggml.token_type"),
    )
    config = Config(
        vocabulary=len(tokenizer),
        hidden=dimension("embedding_length"),
        layers=dimension("block_count"),
        heads=dimension("attention.head_count"),
        kv_heads=dimension("attention.head_count_kv"),
        head_dim=dimension("attention.key_length"),
        ffn=dimension("feed_forward_length"),
        rope_theta=dimension("rope.freq_base"),
        norm_epsilon=dimension("attention.layer_norm_rms_epsilon"),
        context_length=dimension("context_length"),
    )
    weights = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    model = Model(config)
    model.load_state_dict({name: w.float() for name, w in weights.items()})
    return model.eval(), tokenizer
