"The shared fixtures do what their names say: other tests build on them."


def test_the_tiny_tokenizer_loses_nothing(tiny_tokenizer):
    text = "type 4 'Zoë' → [7] ☑\n"
    assert tiny_tokenizer.decode(tiny_tokenizer(text).input_ids) == text
    chat = tiny_tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False,
                                              add_generation_prompt=True)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_tiny_models_depend_on_the_seed_only(make_tiny_model, tiny_model, tiny_model_folder):
    import torch
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor([[1, 2, 3]])
    logits = tiny_model(tokens).logits
    assert torch.equal(make_tiny_model(0)(tokens).logits, logits)
    assert not torch.equal(make_tiny_model(1)(tokens).logits, logits)
    saved = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.testing.assert_close(saved(tokens).logits, logits)


def test_a_run_directory_is_fresh(quick_run, run_folder):
    assert quick_run.path == run_folder and quick_run.scale.name == "quick"
