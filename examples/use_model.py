"""Use a trained model from Python, with transformers' own classes.

    python examples/use_model.py runs/quickstart/best_model "The assert statement"

The quickstart leaves this model; any other of gpt2_hf will do.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2_hf  # noqa: F401  (tells the Auto classes about the model)

folder, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20, do_sample=True, top_p=0.95)
print(tokenizer.decode(output[0], skip_special_tokens=True))
