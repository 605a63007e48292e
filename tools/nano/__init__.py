"""How the model that ships was made: text generator, tokenizer, training, evaluation, export."""
