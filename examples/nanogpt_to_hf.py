"""Convert a checkpoint of nanoGPT to a Hugging Face directory: python nanogpt_to_hf.py ckpt.pt DIRECTORY [TOKENIZER]

Needs torch and transformers. TOKENIZER is a directory with a tokenizer.json, or a name on the hub (default: gpt2).
"""

import sys

import torch
import transformers

source, directory, tokenizer = (*sys.argv[1:], "gpt2")[:3]
checkpoint = torch.load(
    source, map_location="cpu", weights_only=True
)  # of a pickle, only tensors and plain values
shape = checkpoint["model_args"]
vocabulary = transformers.AutoTokenizer.from_pretrained(tokenizer)
if len(vocabulary) > shape["vocab_size"]:
    sys.exit(
        f"the model has {shape['vocab_size']} tokens, the tokenizer {len(vocabulary)}: it was not trained with it"
    )
config = transformers.GPT2Config(
    vocab_size=shape["vocab_size"], n_positions=shape["block_size"], n_embd=shape["n_embd"], n_layer=shape["n_layer"],
    n_head=shape["n_head"], activation_function="gelu", bos_token_id=vocabulary.eos_token_id,
    eos_token_id=vocabulary.eos_token_id,
)  # fmt: skip
model = transformers.GPT2LMHeadModel(config)
weights = {name.removeprefix("_orig_mod."): weight for name, weight in checkpoint["model"].items()}
for name, parameter in model.named_parameters():
    weight = weights.get(name, torch.zeros_like(parameter))  # a model with bias=False has no biases
    is_transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    parameter.data = (weight.T if is_transposed else weight).contiguous()
model.save_pretrained(directory)
vocabulary.save_pretrained(directory)
