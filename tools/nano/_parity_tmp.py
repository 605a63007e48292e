import torch, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from safetensors.torch import load_file
from tools.nano.model import Llama, ModelConfig
f=sys.argv[1]
m=AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32); t=AutoTokenizer.from_pretrained(f)
w={k.removeprefix("model."):v.float() for k,v in load_file(f+"/model.safetensors").items()}
o=Llama(ModelConfig(num_layers=m.config.num_hidden_layers)); print(o.load_state_dict(w))
ids=torch.tensor([t("Question: What is 12 + 7?\nAnswer: 19\n\nQuestion: What is 33 + 7?\nAnswer:").input_ids]); print(t.convert_ids_to_tokens(ids[0]))
with torch.no_grad(): print((m(ids).logits-o(ids)).abs().max())
print(m.config.rope_parameters, m.generation_config)
print(t.decode(m.generate(ids,max_new_tokens=20)[0]))
print(t.apply_chat_template([{"role":"user","content":"Hello!"}],tokenize=False,add_generation_prompt=True))
c=t("<|user|>\nHello!<|end|>\n<|assistant|>\n",return_tensors="pt")
print(t.decode(m.generate(c.input_ids,max_new_tokens=20)[0]))
