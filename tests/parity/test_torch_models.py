"""Whole torch models with adapters: checkpointing, generation, shared routers, copies, folders, any loop."""

import copy

import numpy as np
import pytest
from tiny_bert import write_bert

import polymoe
from polymoe import _core
from polymoe.batch import Batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bridge = pytest.importorskip("polymoe.interop.torch")
OLDER = "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"  # known to every version
pytestmark = pytest.mark.filterwarnings(OLDER)

TASKS, IDS = ["a", "b", "c"], [2, 0, 1, 2]
LENGTHS = [5, 2, 7, 1]
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(5, 20, (4, 7))
MASK = np.arange(7) < np.array(LENGTHS)[:, None]
INPUTS = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.tensor(MASK).long()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "tiny")


def bert(folder):
    return transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=False
    ).eval()


def llama(seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 90, **sizes}
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=3, bos_token_id=1, pad_token_id=0,
        initializer_range=0.4, **sizes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def t5(n_layers):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=n_layers, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def drawn(model, scale=0.3):
    """Routers that can be told apart."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".router." in name:
                p += scale * torch.randn_like(p)
    return model


def gradients(model, run):
    model.zero_grad()
    loss = run()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, tolerance=1e-5):
    assert got[1].keys() == expected[1].keys()
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=tolerance)
    for name, grad in expected[1].items():
        scale = grad.abs().max() + 1e-12
        torch.testing.assert_close(got[1][name] / scale, grad / scale, rtol=0, atol=tolerance, msg=name)


# ---- folders


@pytest.mark.parametrize("method", ["lora", "poly", "mhr", "c-poly", "smear", "mola", "ia3", "tensorpoly-i"])
def test_folders_compute_the_same_in_our_model_and_back(folder, tmp_path, method):
    base = polymoe.load_base(folder)
    options = {} if method == "tensorpoly-i" else {"init_weights": False}
    model = drawn(bridge.inject(bert(folder), method, TASKS, seed=4, **options))
    with torch.no_grad():
        expected = model(**INPUTS, task_ids=IDS).last_hidden_state[torch.tensor(MASK)].numpy()
    bridge.save_adapter(model, tmp_path)
    own = polymoe.load_adapter(base, tmp_path)  # the fingerprint of the base is checked
    batch = Batch(np.cumsum([0, *LENGTHS]), TOKENS[MASK], task_ids=np.array(IDS))
    np.testing.assert_allclose(own(batch), expected, rtol=0, atol=2e-5)
    again = bridge.load_adapter(bert(folder), tmp_path, release_base=True)
    with torch.no_grad():
        got = again(**INPUTS, task_ids=[TASKS[i] for i in IDS]).last_hidden_state[torch.tensor(MASK)].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    bridge.save_adapter(again, tmp_path / "again")  # of released weights, too
    assert polymoe.load_adapter(base, tmp_path / "again").tasks.names == tuple(TASKS)  # names are kept


@pytest.mark.parametrize("method", ["lora", "poly", "mhr"])
def test_folders_compute_the_same_in_peft(folder, tmp_path, method):
    model = drawn(bridge.inject(bert(folder), method, TASKS, init_weights=False))
    bridge.save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(bert(folder), tmp_path).eval()
    given = INPUTS | ({} if method == "lora" else {"task_ids": torch.tensor(IDS)})
    with torch.no_grad():
        expected = theirs(**given).last_hidden_state
        torch.testing.assert_close(
            model(**INPUTS, task_ids=IDS).last_hidden_state, expected, rtol=0, atol=2e-5
        )


def test_a_folder_made_on_other_weights_is_refused(folder, tmp_path):
    other = write_bert(tmp_path / "other", seed=9)
    bridge.save_adapter(bridge.inject(bert(other), "poly", TASKS), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"base: expected .* with fingerprint"):
        bridge.load_adapter(bert(folder), tmp_path / "adapter")
    bridge.load_adapter(bert(folder), tmp_path / "adapter", check_base=False)


def test_names_start_below_a_root(folder, tmp_path):
    """A model with a head writes folders for the bare model, when told to; the head is trained beside."""
    config = transformers.BertConfig.from_pretrained(folder, num_labels=2)
    model = transformers.BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(bert(folder).state_dict(), strict=False)
    bridge.inject(model, "poly", TASKS, "all-linear", root="bert", init_weights=False)
    model.classifier.requires_grad_(True)
    loss, grads = gradients(
        model, lambda: model(**INPUTS, task_ids=IDS, labels=torch.tensor([0, 1, 1, 0])).loss
    )
    assert {"classifier.weight", "bert.encoder.layer.1.output.dense.experts.lora_A"} <= grads.keys()
    assert not any(name.startswith("classifier.experts") for name in grads)
    assert torch.isfinite(loss)


def test_all_linear_leaves_the_heads_alone():
    model = bridge.inject(llama(), "poly", TASKS, "all-linear")
    names = [n for n, m in model.named_modules() if isinstance(m, bridge.InjectedLinear)]
    assert len(names) == 3 * 7
    assert "lm_head" not in names


def test_conv1d_of_gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=24, vocab_size=50, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    before = model(INPUTS["input_ids"]).logits
    bridge.inject(model, "poly", TASKS)  # c_attn
    torch.testing.assert_close(model(INPUTS["input_ids"], task_ids=IDS).logits, before, rtol=0, atol=1e-5)
    _, grads = gradients(model, lambda: model(INPUTS["input_ids"], task_ids=IDS).logits.square().mean())
    assert len(grads) == 6  # lora_A's own are 0 at the start, but there
    bridge.eject(model)
    torch.testing.assert_close(model(INPUTS["input_ids"]).logits, before)


# ---- gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True], ids=["no reentrant", "reentrant"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("poly", {}), ("mola", {"balance_loss": 0.0}), ("smear", {}), ("poly", {"router_granularity": "block"})],
    ids=["poly", "mola", "smear", "block router"],
)
def test_checkpointing_changes_nothing(method, options, reentrant):
    """Two forwards with other tasks before one backward, which runs when no ids are around any more."""
    torch.manual_seed(0)
    model = bridge.inject(llama(), method, TASKS, "all-linear", init_weights=False, **options)
    model = drawn(model).train()
    passes = model.model.layers[0].self_attn.q_proj.passes

    def run():
        passes.step = 0  # the same noise
        first = model(**INPUTS, task_ids=IDS, labels=INPUTS["input_ids"]).loss
        with bridge.task_ids(model, ["b", "b", "c", "a"]):
            second = model(**INPUTS, labels=INPUTS["input_ids"]).loss
        return first + 2 * second

    expected = gradients(model, run)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert_same(gradients(model, run), expected)


def test_checkpointing_in_the_order_of_somebody_else():
    """Each loss goes back by itself, the first first, within the ids of the other."""
    model = drawn(bridge.inject(llama(), "poly", TASKS, init_weights=False)).train()
    passes = model.model.layers[0].self_attn.q_proj.passes
    other = [0, 0, 1, 0]

    def run():
        passes.step = 0
        losses = [model(**INPUTS, task_ids=ids, labels=INPUTS["input_ids"]).loss for ids in (IDS, other)]
        with bridge.task_ids(model, other):
            losses[0].backward()
        return losses[1]

    expected = gradients(model, run)
    model.gradient_checkpointing_enable()
    assert_same(gradients(model, run), expected)


def test_checkpointing_frees_what_layers_keep():
    """Between forward and backward a block holds its input alone."""
    from torch.utils.checkpoint import checkpoint

    D, n = 256, 4096
    block = torch.nn.Sequential(*[torch.nn.Linear(D, D) for _ in range(4)])
    model = bridge.inject(block, "poly", TASKS, r".+", noise="off")
    x = torch.randn(4, n // 4, D, requires_grad=True)
    held = []
    for run in (
        lambda: model(x, task_ids=IDS),
        lambda: checkpoint(lambda: model(x, task_ids=IDS), use_reentrant=False),
    ):
        before, _ = _core.memory_used(True)
        y = run()
        held.append(_core.memory_used(False)[0] - before)
        y.sum().backward()
        del y
    size = n * D * 4
    assert held[0] > 3 * size
    assert held[1] < 2.5 * size


def test_an_auxiliary_loss_that_would_be_lost_is_refused():
    model = bridge.inject(llama(), "mola", TASKS, init_weights=False).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="use_reentrant: expected False"):
        model(**INPUTS, task_ids=IDS, labels=INPUTS["input_ids"]).loss.backward()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_auxiliary_losses_are_part_of_the_loss_of_an_output(checkpointing):
    model = drawn(bridge.inject(llama(), "mola", TASKS, init_weights=False, balance_loss=1.0)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    without = gradients(model, lambda: model(**INPUTS).logits.square().mean() * 0)
    output = model(**INPUTS)
    aux = bridge.auxiliary_loss(model)
    assert aux > 0.9 * 6  # about 1 in each layer
    alone = gradients(model, lambda: (model(**INPUTS), bridge.auxiliary_loss(model))[1])
    assert any(g.abs().max() > 0 for n, g in alone[1].items() if "router" in n)
    with_loss = model(**INPUTS, labels=INPUTS["input_ids"])
    shift = with_loss.loss - model.loss_function(output.logits, INPUTS["input_ids"], vocab_size=90)
    torch.testing.assert_close(shift, aux, rtol=1e-4, atol=1e-4)
    assert bridge.auxiliary_loss(model) == 0
    assert without[0] == 0


# ---- routers that layers share


@pytest.mark.parametrize("granularity", ["block", "model"])
@pytest.mark.parametrize("method", ["poly", "smear"])
def test_shared_routers_decide_once_and_learn_from_all_layers(folder, method, granularity, monkeypatch):
    model = bridge.inject(
        bert(folder), method, TASKS, init_weights=False, router_granularity=granularity, seed=2
    )
    drawn(model)
    adapter = bridge.get_adapter(model)
    routers = {id(layer.router): layer.router for layer in adapter.layers.values()}
    assert len(routers) == {"block": 2, "model": 1}[granularity]
    kind, calls = type(next(iter(routers.values()))), []
    original = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *a: calls.append(1) or original(*a))
    mask = torch.tensor(MASK)
    dy = torch.tensor(RNG.normal(size=(MASK.sum(), 24)).astype(np.float32))
    _, grads = gradients(model, lambda: (model(**INPUTS, task_ids=IDS).last_hidden_state[mask] * dy).sum())
    assert len(calls) == len(routers)
    own = polymoe.adapt(polymoe.load_base(folder), adapter.config, TASKS)
    theirs = dict(adapter.parameters())
    for name, parameter in own.adapter_parameters():
        parameter.data[...] = theirs[name].data
    with polymoe.tape.Tape() as recorded:
        y = own(Batch(np.cumsum([0, *LENGTHS]), TOKENS[MASK], task_ids=np.array(IDS)))
    recorded.backward(y, dy.numpy())
    assert len(grads) == len(own.adapter_parameters())
    for name, parameter in own.adapter_parameters():
        scale = np.abs(parameter.grad).max()
        np.testing.assert_allclose(
            grads[name].numpy() / scale, parameter.grad / scale, atol=2e-5, err_msg=name
        )


# ---- generation


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 1},
    ],
    ids=["greedy", "beams", "returns", "samples"],
)
@pytest.mark.parametrize("method", ["poly", "smear", "mola"])
def test_generate_gives_each_prompt_its_own_task(method, settings):
    """As each prompt alone, whatever number of rows is made of it; PEFT's Poly fails with beams."""
    model = drawn(bridge.inject(llama(), method, TASKS, "all-linear", init_weights=False, r=2), 2.0)
    prompts = [[1, 5, 9, 11], [1, 7, 30, 6], [1, 6, 6, 19]]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, **settings}
    tokens, n = torch.tensor(prompts), settings.get("num_return_sequences", 1)
    mask = torch.ones_like(tokens)
    together = model.generate(tokens, attention_mask=mask, task_ids=["c", "a", "b"], **settings)
    with bridge.task_ids(model, [2, 0, 1]):
        torch.testing.assert_close(
            model.generate(input_ids=tokens, attention_mask=mask, **settings), together
        )
    for i, task in enumerate("cab"):
        alone = model.generate(tokens[i : i + 1], attention_mask=mask[:1], task_ids=task, **settings)
        torch.testing.assert_close(together[n * i : n * (i + 1)], alone)
    if method == "poly":
        others = model.generate(tokens, attention_mask=mask, task_ids="a", **settings)
        assert (others != together).any()


def test_generate_is_that_of_our_own_model(tmp_path):
    """Routed by the prompt, which keeps its routing while the text is written."""
    from tiny_llama import tiny_tokenizer

    reference = llama(vocab_size=tiny_tokenizer().get_vocab_size())
    reference.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save(str(tmp_path / "base/tokenizer.json"))
    model = drawn(bridge.inject(reference, "smear", TASKS, init_weights=False), 2.0)
    bridge.save_adapter(model, tmp_path / "adapter")
    own = polymoe.load_adapter(polymoe.load_base(tmp_path / "base"), tmp_path / "adapter")
    prompt = [1, 5, 9, 11]
    got = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4).long(), max_new_tokens=8, do_sample=False
    )
    (expected,) = polymoe.models.generate(own, [np.array(prompt)], max_new_tokens=8)[0]
    assert len(expected.token_ids) >= 4
    assert got[0, 4 : 4 + len(expected.token_ids)].tolist() == list(expected.token_ids)


def test_generate_refuses_a_wrong_number_of_ids():
    model = bridge.inject(llama(), "poly", TASKS)
    tokens = torch.tensor([[1, 5], [1, 7], [1, 6], [1, 9]])
    mask = torch.ones_like(tokens)
    with pytest.raises(ValueError, match=r"task_ids: expected shape \(4,\), got \(2,\)"):
        model.generate(tokens, attention_mask=mask, task_ids=[0, 1], max_new_tokens=2)
    with pytest.raises(ValueError, match="task_ids: expected one of"):
        model.generate(tokens, attention_mask=mask, max_new_tokens=2)


def test_generate_of_an_encoder_and_decoder():
    """The encoder is called by itself, before rows are repeated for the beams."""
    model = drawn(bridge.inject(t5(2), "poly", TASKS, init_weights=False), 2.0)
    tokens = torch.tensor([[5, 9, 11], [7, 30, 6]])
    settings = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}
    mask = torch.ones_like(tokens)
    together = model.generate(tokens, attention_mask=mask, task_ids=["c", "a"], **settings)
    for i, task in enumerate("ca"):
        alone = model.generate(tokens[i : i + 1], attention_mask=mask[:1], task_ids=task, **settings)
        torch.testing.assert_close(together[2 * i : 2 * i + 2, : alone.shape[1]], alone)


def test_mixing_is_done_once_for_a_text_and_once_for_a_task(monkeypatch):
    """PEFT's Poly mixes for every row, in every layer, for every token written."""
    model = bridge.inject(llama(), "poly", TASKS, init_weights=False)
    mixed, linear = [], []
    mix_fwd, linear_fwd = _core.mix_fwd, _core.linear_fwd
    monkeypatch.setattr(_core, "mix_fwd", lambda *a: mixed.append(a[0].shape) or mix_fwd(*a))
    monkeypatch.setattr(
        _core, "linear_fwd", lambda *a: linear.extend(layer[4] for layer in a[3:]) or linear_fwd(*a)
    )
    tokens = torch.tensor([[1, 5], [1, 7], [1, 6], [1, 9]])
    mask = torch.ones_like(tokens)
    model.generate(
        tokens, attention_mask=mask, task_ids=[0, 2, 2, 0], max_new_tokens=9, min_new_tokens=9, num_beams=2
    )
    assert len(mixed) == 2 * 6  # A and B of six layers
    assert {shape[0] for shape in mixed} == {2}  # tasks, not rows
    assert linear and all(weights is None for weights in linear)


# ---- other loops


def test_a_contrastive_loop_with_several_forwards_learns():
    """As sentence-embedding trainers do: two sides, a loss over both, one optimiser with two rates."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    model = bridge.inject(
        transformers.BertModel(config, add_pooling_layer=False), "poly", TASKS, "all-linear", noise="off"
    )
    model.train()
    groups = bridge.parameter_groups(model, learning_rate=1e-2, router_learning_rate=5e-2)
    optimizer = torch.optim.AdamW(groups)
    a = torch.arange(5, 45).reshape(8, 5)
    b = a.flip(1) + 10

    def embed(tokens, ids):
        with bridge.task_ids(model, ids):
            return torch.nn.functional.normalize(model(tokens).last_hidden_state.mean(1), dim=-1)

    losses = []
    for _ in range(25):
        scores = embed(a, [0, 1] * 4) @ embed(b, [2, 2] * 4).T
        loss = torch.nn.functional.cross_entropy(10 * scores, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_model_that_is_part_of_another():
    """Of which it knows nothing: ids by a block; parts called one by one; a wrapper that takes a mapping."""

    class Pooled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, features):
            return self.inner(**features).last_hidden_state.mean(1)

    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    inner = bridge.inject(transformers.BertModel(config), "poly", TASKS, init_weights=False).eval()
    inner = drawn(inner)
    expected = inner(**INPUTS, task_ids=IDS).last_hidden_state
    wrapper = Pooled(inner)
    with bridge.task_ids(wrapper, IDS):
        torch.testing.assert_close(wrapper(INPUTS), expected.mean(1))
        parts = inner.encoder(inner.embeddings(INPUTS["input_ids"])).last_hidden_state
        torch.testing.assert_close(parts, inner(INPUTS["input_ids"]).last_hidden_state)
    bridge.eject(inner)
    outer = bridge.inject(Pooled(transformers.BertModel(config)), "poly", TASKS, ["query"]).eval()
    assert outer(INPUTS, task_ids=IDS).shape == (4, 24)
    with pytest.raises(ValueError, match=r"task_ids: expected shape \(4,\), got \(3,\)"):
        outer(INPUTS, task_ids=[0, 1, 2])


def test_a_forward_that_knows_task_ids_gets_them():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 6)

        def forward(self, x, task_ids):
            return self.linear(x), task_ids

    model = bridge.inject(Model(), "poly", TASKS, ["linear"])
    ids = torch.tensor([0, 1])
    assert model(torch.randn(2, 6), task_ids=ids)[1] is ids


def test_copies_of_a_model_go_their_own_way(folder):
    model = drawn(bridge.inject(bert(folder), "poly", TASKS, init_weights=False, router_granularity="block"))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.zero_()
    other = copied(**INPUTS, task_ids=IDS).last_hidden_state
    assert (other - model(**INPUTS, task_ids=IDS).last_hidden_state).abs().max() > 0.01
    assert copied.forward.model is copied
    with bridge.task_ids(copied, IDS):
        torch.testing.assert_close(copied(**INPUTS).last_hidden_state, other)
        with pytest.raises(ValueError, match="task_ids"):
            model(**INPUTS)


def test_a_pickled_model_computes_the_same(folder, tmp_path):
    model = drawn(bridge.inject(bert(folder), "poly", TASKS, init_weights=False))
    expected = model(**INPUTS, task_ids=IDS).last_hidden_state
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(again(**INPUTS, task_ids=IDS).last_hidden_state, expected)


def test_shared_routers_of_few_experts_at_a_time():
    """Weights beside ids, as many groups as there are tokens."""
    options = {"specific": "diagonal", "router_granularity": "model", "init_weights": False}
    model = bridge.inject(llama(), "c-poly", TASKS, seed=1, **options).train()
    alone = bridge.inject(llama(), "c-poly", TASKS, seed=1, **options).eval()
    tokens = torch.tensor([[5], [6], [7]])
    _, grads = gradients(model, lambda: model(tokens, task_ids=[0, 1, 2]).logits.square().mean())
    assert grads["model.layers.0.self_attn.q_proj.router.specific"].abs().max() > 0
    assert alone(tokens, task_ids=[0, 1, 2]).logits.shape == (3, 1, 90)


@pytest.mark.parametrize("padded", [False, True])
def test_shortcuts_of_torchs_own_encoder_are_not_taken(padded):
    """In evaluation it computes a whole layer by one kernel, from the weights of its linear layers alone."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = torch.nn.TransformerEncoder(layer, 2)
    x, mask = torch.randn(4, 7, 16), torch.tensor(~MASK) if padded else None
    model = bridge.inject(model, "poly", TASKS, ["linear1", "linear2"], init_weights=False, noise="off")
    expected = drawn(model).train()(x, src_key_padding_mask=mask, task_ids=IDS)
    model.eval()
    with torch.no_grad():
        y = model(x, src_key_padding_mask=mask, task_ids=IDS)
        seen = torch.tensor(MASK) if padded else slice(None)
        torch.testing.assert_close(y[seen], expected[seen])
        with bridge.disable_adapter(model):
            assert (model(x, src_key_padding_mask=mask) - y)[seen].abs().max() > 0.01


def test_a_mask_of_another_text_is_not_taken_for_ones_own():
    """That of the encoder's text says nothing of the decoder's tokens."""
    model = drawn(bridge.inject(t5(1), "smear", TASKS, init_weights=False), 2.0)
    mask = torch.tensor([[1, 1, 1, 0]])
    given = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "decoder_input_ids": torch.tensor([[0, 3, 4, 9]])}
    routings = []
    layer = model.decoder.block[0].layer[0].SelfAttention.q
    original = layer._adapted
    layer._adapted = lambda x, batch, at: routings.append(batch.n_tokens) or original(x, batch, at)
    model(**given, attention_mask=mask)
    assert routings == [4]
