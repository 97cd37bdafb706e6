"""Export a trained model: a GPT2LMHeadModel folder that every tool which reads GPT-2 understands.

    python examples/export_gpt2.py --model_path runs/quickstart/best_model --output_dir exported_example

Without --model_path it exports a small random model. The same as a command, for a trained model:
python -m gpt2_hf export --model_path runs/quickstart/best_model --output_dir exported_example
"""

import argparse

from transformers import pipeline

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, export_to_gpt2, load_tokenizer, load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="folder of a gpt2_hf model; a small random one when left out")
    parser.add_argument("--output_dir", default="exported", help="new folder for the stock GPT-2")
    args = parser.parse_args()

    if args.model_path:
        model, tokenizer, _ = load_trained(args.model_path)
    else:
        tokenizer = load_tokenizer()
        model = GPT2HFForCausalLM(GPT2HFConfig(n_embd=64, n_layer=2, n_head=2))
        # Rounded up for the sake of matrix units; the rows that stand for no token do not reach the exported file.
        model.resize_token_embeddings(pad_to_multiple_of=64)
    difference = export_to_gpt2(model, args.output_dir, tokenizer)
    print(f"exported to {args.output_dir}; loaded back, its logits differ by {difference:.1e}")

    generator = pipeline("text-generation", model=args.output_dir)
    print(type(generator.model).__name__, "says:")
    print(generator("The", max_new_tokens=8, do_sample=False)[0]["generated_text"])


if __name__ == "__main__":
    main()
