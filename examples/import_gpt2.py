"""Import stock GPT-2 weights and compare the logits: from a stock folder or hub id to gpt2_hf.

    python examples/import_gpt2.py --model_path openai-community/gpt2 --output_dir imported_gpt2

Without --model_path it makes a small random GPT-2 first, and so needs no network. Training can start from
the weights directly: python run_clm.py --config training_args/finetune_gpt2.json
"""

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2_hf import load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="folder or hub id of a stock GPT-2; a small random one when left out")
    parser.add_argument("--output_dir", default="imported", help="folder for the gpt2_hf model")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        source = args.model_path or make_small_gpt2(folder)
        # GPT2HFForCausalLM.from_pretrained(source) does it as well; this also finds the tokenizer.
        model, tokenizer, _ = load_trained(source)
        stock = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32).eval()
    ids = tokenizer("The weights are what they were.", return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (model(ids).logits - stock(ids).logits).abs().max().item()
    same = all(torch.equal(weight, stock.state_dict()[name]) for name, weight in model.state_dict().items())
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{model.num_parameters():,} parameters, bitwise the same: {same}; logits differ by {difference:.1e}")
    print(f"saved in {args.output_dir}; AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True) loads it")


def make_small_gpt2(folder: str) -> str:
    """Save a small random GPT-2 and return its folder."""
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
