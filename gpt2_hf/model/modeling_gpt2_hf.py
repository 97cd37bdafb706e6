"""GPT-2 as a `PreTrainedModel`, written on torch alone.

In: token ids (and, for packed batches, where each document begins). Out: hidden states, or the loss
and logits of the tied head. Next stage: `trainer`, or transformers' `generate`.

What is special here, compared with transformers' own GPT-2:
  - the parameters keep GPT-2's names and layout (`c_attn` is `[in, out]`), so OpenAI's weights load as they are;
  - several documents may share one row without padding (`cu_seq_lens_q`): attention alone is told their lengths
    where its kernel takes these (flash attention), or sees them as separate rows, so no token can look into another
    document;
  - on a CPU, dropout and attention have kernels of their own (`dropout`, `chunked_attention`);
  - training returns no logits: `chunked_loss` forms loss and gradient a few hundred positions at a time;
  - the GELU is torch's fused tanh approximation.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: B batch, T time, C channels, H heads, D head size, V vocabulary, S documents, L longest document,
S_k and L_k those of a length bucket.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .chunked_attention import chunked_causal_attention
from .chunked_loss import (
    IGNORE_INDEX,
    chunked_cross_entropy,
    chunked_token_losses,
    default_rows_per_chunk,
    product_dtype,
    with_few_lengths,
)
from .configuration_gpt2_hf import NO_CROSS_ATTENTION, GPT2HFConfig
from .dropout import Dropout
from .packing import LengthClass, PackedDocuments, Packing, lengths_of_documents, next_tokens
from .unused_tokens import UnusedTokens
from .variable_length_attention import missing_for_variable_lengths, variable_length_attention


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain matrix products; the backend that can return its probabilities."""
    if module.config.reorder_and_upcast_attn:
        # Mistral-GPT2's stability option: scores in fp32 whatever the autocast dtype.
        with torch.autocast(query.device.type, enabled=False):
            scores = torch.matmul(query.float() * scaling, key.float().transpose(-1, -2))
    else:
        scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1).to(value.dtype)  # [B, H, T, T]
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


class GPT2HFAttention(nn.Module):
    """Causal multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, config: GPT2HFConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.n_head
        self.head_dim = config.head_size
        self.is_causal = True
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.c_proj.ends_residual_branch = True
        self.attn_dropout = nn.Dropout(config.attn_pdrop)  # only its rate is read, by the attention backends
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,  # [B, T, C]
        past_key_values: Cache | None = None,
        attention_mask: Tensor | list[Any] | None = None,  # a list with one of each class where there are documents
        documents: PackedDocuments | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        qkv = self.c_attn(hidden_states)  # [B, T, 3C]
        if documents is not None:
            output, probabilities = self._attend_within(documents, qkv, attention_mask, **kwargs)
        elif self._can_chunk(qkv, attention_mask, past_key_values) and (self._dropout or qkv.dtype == torch.bfloat16):
            output, probabilities = self._attend_in_chunks(qkv), None
        else:
            output, probabilities = self._attend(qkv, attention_mask, past_key_values, **kwargs)
        return self.resid_dropout(self.c_proj(output)), probabilities

    @property
    def _dropout(self) -> float:
        return self.attn_dropout.p if self.training else 0.0

    def _attend(
        self, qkv: Tensor, attention_mask: Any, past_key_values: Cache | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, T, 3C]` to `[B, T, C]` by the chosen backend, and the probabilities if it gives them."""
        query, key, value = self._split_heads(qkv)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, probabilities = attention_interface(
            self, query, key, value, attention_mask, dropout=self._dropout, scaling=self.scaling, **kwargs
        )
        return output.flatten(2), probabilities

    def _attend_in_chunks(self, qkv: Tensor, boundaries: tuple[int, ...] | None = None) -> Tensor:
        """The same on a CPU, with dropout and documents; in bf16 it is also faster than torch's kernel."""
        output = chunked_causal_attention(
            *self._split_heads(qkv), scaling=self.scaling, dropout=self._dropout, boundaries=boundaries
        )
        return output.transpose(1, 2).flatten(2)

    def _attend_within(
        self, documents: PackedDocuments, qkv: Tensor, masks: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The same for a row `[1, T, 3C]` of several documents; the probabilities are those of all as padded rows."""
        if documents.has_kernel:
            query, key, value = qkv[0].unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)  # [T, H, D]
            output = variable_length_attention(
                query,
                key,
                value,
                documents.cu_seq_lens.to(qkv.device),
                documents.max_length,
                scaling=self.scaling,
                dropout=self._dropout,
            )
            return output.flatten(1).unsqueeze(0), None
        if self.can_chunk_documents(qkv, documents, masks):
            return self._attend_in_chunks(qkv, documents.boundaries), None
        probabilities: list[Tensor | None] = []

        def attend(rows: Tensor, number: int) -> Tensor:
            output, of_rows = self._attend(rows, masks[number], **kwargs)
            probabilities.append(of_rows)
            return output

        output = documents.attend(qkv, attend)
        return output, probabilities[0] if len(probabilities) == 1 else None

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3C]` to query, key and value, each `[B, H, T, D]`."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        return query, key, value

    def can_chunk_documents(self, qkv: Tensor, documents: PackedDocuments, masks: Any) -> bool:
        """Whether documents are attended to where they lie, in chunks."""
        return documents.boundaries is not None and all(mask is None for mask in masks) and self._can_chunk(qkv)

    def _can_chunk(self, qkv: Tensor, attention_mask: Any = None, past_key_values: Cache | None = None) -> bool:
        """Whether this is a forward pass over whole rows on a CPU, without a mask."""
        return (
            qkv.device.type == "cpu"
            and self.config._attn_implementation == "sdpa"
            and attention_mask is None
            and past_key_values is None
            and not torch.compiler.is_compiling()
        )


class GPT2HFMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: GPT2HFConfig):
        super().__init__()
        self.c_fc = Conv1D(config.inner_size, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.inner_size)
        self.c_proj.ends_residual_branch = True
        # "gelu_new" names transformers' unfused formula; torch's kernel computes the same function.
        fused = config.activation_function in ("gelu_new", "gelu_pytorch_tanh")
        self.act = nn.GELU(approximate="tanh") if fused else ACT2FN[config.activation_function]
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden_states))))


class GPT2HFBlock(GradientCheckpointingLayer):
    """Pre-LN transformer block: `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`."""

    def __init__(self, config: GPT2HFConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2HFAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2HFMLP(config)

    def forward(
        self,
        hidden_states: Tensor,  # [B, T, C]
        past_key_values: Cache | None = None,
        attention_mask: Tensor | list[Any] | None = None,
        documents: PackedDocuments | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attention_output, _ = self.attn(
            self.ln_1(hidden_states),
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            documents=documents,
            **kwargs,
        )
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GPT2HFPreTrainedModel(PreTrainedModel):
    """What every GPT-2 model of this package shares: capabilities and initialisation."""

    config: GPT2HFConfig
    unused_tokens: UnusedTokens | None
    config_class = GPT2HFConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2HFBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GPT2HFBlock,
        "attentions": OutputRecorder(GPT2HFAttention, index=1, layer_name=".attn"),
    }
    # Causal-mask buffers that old GPT-2 checkpoints carry.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.bias$", r"\.attn\.masked_bias$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's scheme: N(0, 0.02), zero biases, residual projections scaled by 1 / sqrt(2 * n_layer)."""
        super()._init_weights(module)
        # Told from the projection itself: outside its own package, transformers passes over modules that hold
        # no parameter directly, such as the attention and the MLP.
        if isinstance(module, Conv1D):
            std = self.config.initializer_range
            if getattr(module, "ends_residual_branch", False):
                std /= math.sqrt(2 * self.config.n_layer)
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = None, **kwargs: Any) -> Any:
        """Load as transformers does, but no pickle unless `use_safetensors=False` asks for it.

        transformers reads a `pytorch_model.bin` wherever there is no `model.safetensors`.
        """
        try:
            return super().from_pretrained(*args, use_safetensors=use_safetensors is not False, **kwargs)
        except OSError as error:
            if use_safetensors is not None or "file named model" not in str(error):
                raise
            # transformers advises against an option that the caller has not set.
            reason, *_ = str(error).split(" Please do not")
            raise OSError(
                f"{reason} gpt2_hf reads no pickle by itself: pass use_safetensors=False for weights that you trust, "
                "or save them anew with GPT2LMHeadModel"
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; where the source travels along, every Auto class finds its model in it."""
        if self._auto_class is not None:
            module = __name__.rpartition(".")[2]
            ours = {
                "AutoModel": f"{module}.GPT2HFModel",
                "AutoModelForCausalLM": f"{module}.GPT2HFForCausalLM",
            }
            # beside the source of a subclass, which transformers names itself, this file is not saved
            self.config.auto_map = ours if type(self).__module__ == __name__ else {}
        super().save_pretrained(save_directory, *args, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Resize as transformers does, and remember which rows only pad the vocabulary."""
        if new_num_tokens is None and pad_to_multiple_of is None:
            return super().resize_token_embeddings()
        num_tokens = self.config.num_tokens if new_num_tokens is None else new_num_tokens
        embeddings = super().resize_token_embeddings(num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.n_vocab_padding = self.config.vocab_size - num_tokens
        self.unused_tokens = None  # new tokens are there to be used
        return embeddings


class GPT2HFModel(GPT2HFPreTrainedModel):
    """The transformer without a head: token and position embeddings, blocks, final LayerNorm."""

    def __init__(self, config: GPT2HFConfig):
        super().__init__(config)
        if not hasattr(config, "check_heads"):
            raise ValueError(
                f"{type(self).__name__} takes a GPT2HFConfig, got {type(config).__name__}; make one with the same "
                "arguments, or leave `config` out of from_pretrained"
            )
        config.check_heads()
        if getattr(config, "add_cross_attention", False):  # set after the config was made
            raise ValueError(NO_CROSS_ATTENTION)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([GPT2HFBlock(config, layer_idx) for layer_idx in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        document_lengths: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the last hidden states.

        Args:
            input_ids: int64 `[B, T]`. Either these or `inputs_embeds` `[B, T, C]`.
            past_key_values: keys and values of earlier positions.
            attention_mask: `[B, past + T]`, 1 for real tokens, 0 for padding; or a prepared 4-D mask.
            token_type_ids: int64 `[B, T]`, embedded by `wte` and added, as in transformers' GPT-2.
            position_ids: int64 `[B, T]`; counted from the cache's length when left out.
            use_cache: return the cache.
            cu_seq_lens_q, cu_seq_lens_k: int32 `[S + 1]`, cumulative document lengths of a row `[1, T]` that
                holds S documents; both the same. Needs `max_length_q`.
            max_length_q, max_length_k: length of the longest document in tokens.
            document_lengths: int `[S]` on the host (NumPy, or a list), the length of each document. On an accelerator
                without a kernel for unequal lengths, the host needs it to pad documents to others of their length;
                without it all are padded to the longest.

        Raises:
            ValueError: if both or neither of ids and embeddings are given, if the sequence is longer than
                `n_positions`, if packing is combined with a mask or a cache (documents would see each other), if
                gradient checkpointing in training mode is given a cache, or if attention is not to be causal
                self-attention (`is_causal=False`, here or in the config, or `encoder_hidden_states`).
        """
        self._refuse_other_attention(kwargs)
        wants_probabilities = kwargs.pop("output_attentions", None)  # both are read by the decorator
        wants_hidden_states = kwargs.pop("output_hidden_states", None)
        inputs_embeds = self._embed_tokens(input_ids, inputs_embeds)  # [B, T, C]
        if position_ids is not None and position_ids.ndim == 1:
            position_ids = position_ids.unsqueeze(0)
        packing = Packing.read(
            lengths_of_documents(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k),
            document_lengths,
            position_ids,
            attention_mask,
            paged=kwargs.get("cache") is not None,
        )
        use_cache = self._decide_use_cache(use_cache, past_key_values, attention_mask, packing)
        documents = packing.documents(inputs_embeds)
        self._check_positions(position_ids, inputs_embeds.shape[1], attention_mask, past_key_values, packing)
        given_position_ids = position_ids
        if position_ids is None and documents is not None:
            position_ids = documents.positions().unsqueeze(0)
        in_one_class = self.config.output_attentions if wants_probabilities is None else wants_probabilities
        documents, for_backend = self._for_the_backend(documents, packing, inputs_embeds, in_one_class)
        if documents is None:
            looked_at = position_ids if packing.looks_at_positions(use_cache) else None
            mask = self._causal_mask(inputs_embeds, attention_mask, past_key_values, looked_at)
        else:
            mask = [self._class_mask(inputs_embeds, of_class) for of_class in documents.classes]
        # Not before the mask: for a call with a cache, even an empty one, restarting positions are not looked at.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _count_positions(inputs_embeds, past_key_values)
        if given_position_ids is not None and not packing.lengths:
            # Flash attention looks in them for documents, which it is waited for in each layer: only where the caller
            # may have meant that.
            for_backend["position_ids"] = given_position_ids

        hidden_states = inputs_embeds + self.wpe(position_ids).to(inputs_embeds.device)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.wte(token_type_ids)
        hidden_states = self.drop(hidden_states)
        num_tokens = hidden_states.shape[1]
        if not (self.config.output_hidden_states if wants_hidden_states is None else wants_hidden_states):
            hidden_states = self._with_few_lengths(hidden_states, documents, mask)
        for block in self.h:
            hidden_states = block(
                hidden_states,
                past_key_values=past_key_values,
                attention_mask=mask,
                documents=documents,
                **for_backend,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden_states)[:, :num_tokens],
            past_key_values=past_key_values if use_cache else None,
        )

    def _refuse_other_attention(self, kwargs: dict[str, Any]) -> None:
        """Raise a `ValueError` for attention that this model does not have, and would leave out in silence."""
        # `generate_batch` passes False beside its paged cache: its own mask is causal.
        is_causal = kwargs.get("is_causal") if kwargs.get("cache") is None else None
        if False in (is_causal, getattr(self.config, "is_causal", None)):
            raise ValueError(
                "this model attends causally only (is_causal=False); gpt2-hf export writes a stock GPT-2, which can "
                "attend in both directions"
            )
        if kwargs.get("encoder_hidden_states") is not None:
            raise ValueError("gpt2_hf has no cross-attention; leave out encoder_hidden_states")

    def _embed_tokens(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """The token embeddings `[B, T, C]`, looked up or given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, not both and not neither")
        return self.wte(input_ids) if inputs_embeds is None else inputs_embeds

    def _with_few_lengths(self, hidden_states: Tensor, documents: PackedDocuments | None, masks: Any) -> Tensor:
        """`[1, T, C]` with positions of no document, where attention leaves them out, so that T is one of few."""
        if documents is None or not self.h or not self.h[0].attn.can_chunk_documents(hidden_states, documents, masks):
            return hidden_states
        return with_few_lengths(hidden_states, product_dtype(hidden_states, hidden_states.device.type))

    def _decide_use_cache(
        self,
        use_cache: bool | None,
        past_key_values: Cache | None,
        attention_mask: Tensor | None,
        packing: Packing,
    ) -> bool:
        """Whether to return a cache; refuses what would let documents of one row see each other."""
        if packing.must_isolate:
            packing.refuse_leaks(attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache)
            return False
        if self.config._attn_implementation == "flex_attention" and getattr(past_key_values, "is_compileable", False):
            # flex reads its mask, which holds the cache's own counter, only after the cache has been moved on.
            raise ValueError(
                "flex_attention cannot use a static cache; use a dynamic one, or attn_implementation='sdpa'"
            )
        if self.gradient_checkpointing and self.training:
            # The recomputation would write every key and value twice, so transformers keeps a cache from the layers.
            if past_key_values is not None:
                raise ValueError(
                    "gradient checkpointing takes no cache in training mode; call model.eval() first, or generate "
                    "with use_cache=False"
                )
            return False
        return self.config.use_cache if use_cache is None else use_cache

    def _check_positions(
        self,
        position_ids: Tensor | None,
        num_tokens: int,
        attention_mask: Any,
        past_key_values: Cache | None,
        packing: Packing,
    ) -> None:
        """Refuse more positions than the model has, where the host can tell."""
        compiling = torch.compiler.is_compiling()
        may_be_fewer = position_ids is not None and (compiling or attention_mask is not None)
        if packing.lengths and not packing.paged:
            self.check_length(packing.lengths["max_length_q"] or 0)
        elif not (packing.restarts or packing.paged or may_be_fewer):
            # A row with padding, or whose positions restart, may be longer, but a compiler cannot look at them. A
            # compileable cache counts on the device; reading it here would stall decoding.
            past_length = _past_length(past_key_values)
            self.check_length(num_tokens + (past_length if isinstance(past_length, int) else 0))
        if position_ids is not None and position_ids.device.type == "cpu" and not compiling:
            self.check_length(int(position_ids.max()) + 1)

    def _for_the_backend(
        self, documents: PackedDocuments | None, packing: Packing, inputs_embeds: Tensor, in_one_class: bool
    ) -> tuple[PackedDocuments | None, dict[str, Any]]:
        """How attention learns of the documents: by what is made of them here, or as the arguments it gets."""
        backend = self.config._attn_implementation
        if documents is None or "flash" in backend:
            return None, dict(packing.lengths)
        if backend == "sdpa" and not in_one_class:
            device_type = inputs_embeds.device.type
            dtype = product_dtype(inputs_embeds, device_type)
            if missing_for_variable_lengths(device_type, dtype, self.config.head_size) is None:
                return documents.with_kernel(), {}
        return documents.in_classes(all_in_one=in_one_class), {}

    def _causal_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor | None,
    ) -> Any:
        """The mask in the backend's form; `None` where being causal is all that is asked.

        Position ids that restart, stock's convention for packed rows, cost a full `T × T` mask; without a cache others
        that jump are taken for a restart, as in stock.
        """
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

    def _class_mask(self, inputs_embeds: Tensor, documents: LengthClass) -> Any:
        """The same for right-padded rows `[S_k, L_k]`."""
        return create_causal_mask(
            config=self.config,
            # only shape, dtype and device are read
            inputs_embeds=inputs_embeds.new_empty(documents.num_documents, documents.max_length, 0),
            attention_mask=None,
            past_key_values=None,
        )

    def check_length(self, num_tokens: int) -> None:
        """Raise a `ValueError` if the model has fewer positions."""
        if num_tokens > self.config.n_positions:
            raise ValueError(
                f"the sequence has {num_tokens} tokens but the model has {self.config.n_positions} positions "
                "(n_positions); shorten the prompt or max_new_tokens, or train with a larger max_length"
            )


def _past_length(past_key_values: Cache | None) -> Any:
    """Tokens in the cache; a tensor if it counts on the device."""
    return past_key_values.get_seq_length() if past_key_values is not None else 0


def _count_positions(inputs_embeds: Tensor, past_key_values: Cache | None) -> Tensor:
    """Position ids `[1, T]`, on from the cache."""
    counted = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
    return (counted + _past_length(past_key_values)).unsqueeze(0)


class GPT2HFForCausalLM(GPT2HFPreTrainedModel, GenerationMixin):
    """GPT-2 with its language-model head, whose weight is the token embedding's."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: GPT2HFConfig):
        super().__init__(config)
        self.transformer = GPT2HFModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.unused_tokens = None
        self.returns_logits: bool | None = None  # for calls without `return_logits`
        self.post_init()

    @property
    def loss_function(self) -> Any:
        """transformers' loss. It is not called: this model makes its loss in chunks."""
        return super().loss_function

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        raise ValueError(
            "this model makes its loss in chunks and calls no loss_function; pass compute_loss_func to the Trainer, "
            "or call the model without labels and compute your loss from the logits"
        )

    def tie_unused_tokens(self, used_ids: Tensor) -> int:
        """Give all tokens that a training text does not use one common embedding, and train the head faster for it.

        Loss and gradients stay those of the whole vocabulary, as long as nothing but training on that text changes
        the embedding: see `unused_tokens`. For new models; a trained one's rows are not alike.

        Args:
            used_ids: int64 `[U]`, in any order, the ids that are inputs or targets in training mode; no other may
                become one there.

        Returns:
            The number of tokens that are tied; 0, with nothing done, if the text uses all of them.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        tokens = UnusedTokens(used_ids.to(self.lm_head.weight.device), self.config.num_tokens)
        if len(tokens.unused):
            tokens.tie(self.lm_head.weight)
            self.unused_tokens = tokens
        return len(tokens.unused)

    @property
    def num_head_rows(self) -> int:
        """Rows of the head that a training step multiplies with."""
        return self.config.vocab_size if self.unused_tokens is None else len(self.unused_tokens.rows)

    @property
    def num_body_parameters(self) -> int:
        """Parameters without embeddings and head: those of the blocks and the last LayerNorm."""
        body = self.transformer
        embeddings = body.wte.weight.numel() + body.wpe.weight.numel()
        return sum(parameter.numel() for parameter in body.parameters()) - embeddings

    @property
    def num_matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with in a training step: the body, and the head that is used."""
        return self.num_body_parameters + self.num_head_rows * self.config.n_embd

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute next-token logits, and the loss when labels are given.

        It takes what [`GPT2HFModel.forward`] takes, and further arguments. For `torch.func`, such as gradients of each
        sample, call `model.eval()` first: it takes neither the kernels of training mode nor those for bf16 on a CPU.

        Args:
            labels: int64 `[B, T]`, the input ids themselves; shifted here, with `cu_seq_lens_q` within each document.
                −100 is not scored.
            use_cache: return the cache. Left out, the config says so, but a training step, with labels and without a
                cache to continue, builds none.
            logits_to_keep: compute logits for this number of last positions only (0: all), for these indices
                (`[T']`, or `[B, T']` for each row), or where this mask `[B, T]` is true.
            return_logits: force or forbid the logits. By default they are left out while training with labels,
                where only the loss is needed and `[B, T, V]` would be the largest tensor of the step. A loss of your
                own under transformers' Trainer passes `True`; under `GPT2HFTrainer` it need not: that sets the
                attribute `returns_logits`, which holds where this is left out.
            num_items_in_batch: divide the summed loss by this instead of by the number of scored positions.
            **kwargs: `shift_labels`, int64 `[B, T]`, already shifted: the target of each position, used instead of
                `labels`; `label_smoothing`, the share of the target mass that is spread evenly over the vocabulary;
                `reduction`, "mean" or "none"; and `summed_loss`, a function of this model, its last hidden states
                `[B, T, C]` and the targets `[B, T]` that is called for the sum of the token losses instead of the
                cross-entropy. The rest goes to [`GPT2HFModel.forward`].

        Returns:
            `loss` (fp32 scalar, nats per token), `logits` `[B, T', V]` or `None`, `past_key_values`. With the
            reduction "none" the loss is that of each position, `[B, T]`, 0 where none is scored; it has no gradient.

        Raises:
            ValueError: if the reduction is neither "mean" nor "none", if "none" is given with gradients enabled,
                `label_smoothing` or `num_items_in_batch`, or as for [`GPT2HFModel.forward`].
        """
        # No parameters by name: transformers' Trainer takes every parameter with "label" in its name for one that each
        # batch must hold, and finds no loss where one is missing.
        shift_labels, label_smoothing = kwargs.pop("shift_labels", None), kwargs.pop("label_smoothing", 0.0)
        summed_loss = kwargs.pop("summed_loss", None)
        return_logits = self.returns_logits if return_logits is None else return_logits
        reduction = kwargs.pop("reduction", "mean")
        if reduction != "mean":
            _check_reduction(reduction, label_smoothing, num_items_in_batch)
        scored = labels is not None or shift_labels is not None
        if use_cache is None and scored and self.training and past_key_values is None:
            use_cache = False
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # [B, T, C]
        loss = logits = None
        if return_logits or (return_logits is None and not (self.training and scored)):
            logits = self._logits(_select_positions(hidden_states, logits_to_keep))
        if scored:
            targets = next_tokens(labels, kwargs.get("cu_seq_lens_q")) if shift_labels is None else shift_labels
            if reduction == "none":
                loss = self._token_losses(hidden_states, targets)
            else:
                if summed_loss is None:
                    all_logits = logits if isinstance(logits_to_keep, int) and logits_to_keep == 0 else None
                    loss = self._summed_loss(hidden_states, all_logits, targets, label_smoothing)
                else:
                    loss = summed_loss(self, hidden_states, targets)
                loss = loss / _num_scored(targets, num_items_in_batch, loss.device)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """`[…, C]` to `[…, V]`; rows that only pad the vocabulary get no probability."""
        logits = self.lm_head(hidden_states)
        if self.config.n_vocab_padding:
            logits[..., self.config.num_tokens :] = torch.finfo(logits.dtype).min
        return logits

    def _summed_loss(
        self, hidden_states: Tensor, logits: Tensor | None, shift_labels: Tensor, label_smoothing: float
    ) -> Tensor:
        """The sum of the token losses, by chunks if the head is the plain product with its weight.

        In evaluation that of logits `[B, T, V]` that are there; a training step would need more memory for it.
        """
        head = self.lm_head
        if self._head_is_plain and (logits is None or self.training):
            if self.unused_tokens is not None and (self.training or not torch.is_grad_enabled()):
                return chunked_cross_entropy(
                    hidden_states,
                    self.unused_tokens.compact_head(head.weight),
                    self.unused_tokens.compact_labels(shift_labels, any_token=not self.training),
                    label_smoothing=label_smoothing,
                    copies_of_last_row=len(self.unused_tokens.unused),
                )
            return chunked_cross_entropy(
                hidden_states,
                head.weight,
                shift_labels,
                label_smoothing=label_smoothing,
                num_padding_rows=self.config.n_vocab_padding,
            )
        logits = self._logits(hidden_states) if logits is None else logits
        return self._loss_of_logits(logits, shift_labels, label_smoothing=label_smoothing).sum()

    def _token_losses(self, hidden_states: Tensor, shift_labels: Tensor) -> Tensor:
        """The loss of each position `[B, T]`, by chunks if the head is the plain product with its weight."""
        if self._head_is_plain:
            # the whole head, whatever rows of it training ties
            return chunked_token_losses(
                hidden_states, self.lm_head.weight, shift_labels, num_padding_rows=self.config.n_vocab_padding
            )
        return self._loss_of_logits(self._logits(hidden_states), shift_labels).view(shift_labels.shape)

    @property
    def _head_is_plain(self) -> bool:
        """Whether the head is the product with its weight; one that is adapted, quantised or offloaded is not."""
        head = self.lm_head
        if type(head) is not nn.Linear or head.bias is not None:
            return False
        # torchao quantises in place: the weight is a tensor around other tensors, which have this method.
        return not head.weight.is_meta and not hasattr(head.weight, "__tensor_flatten__")

    def _loss_of_logits(self, logits: Tensor, shift_labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """torch's cross-entropy of each position, `[B * T]`, at least fp32."""
        logits, targets = logits.flatten(0, -2), shift_labels.flatten().to(logits.device)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        chunks: Any = [(logits, targets)]
        if not torch.compiler.is_compiling():  # all rows at once, it would copy the logits twice
            rows = default_rows_per_chunk(logits.device.type, dtype)
            chunks = zip(logits.split(rows), targets.split(rows), strict=True)
        options: dict[str, Any] = {"reduction": "none", "label_smoothing": label_smoothing}
        num_tokens = self.config.num_tokens
        losses = [nn.functional.cross_entropy(some[:, :num_tokens].to(dtype), ids, **options) for some, ids in chunks]
        return torch.cat(losses)

    @staticmethod
    def create_masks_for_generate(config: GPT2HFConfig, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        """The mask that `generate` passes along with a static cache."""
        if config._attn_implementation == "flex_attention":
            return attention_mask  # the model refuses with a reason what would fail here on a BlockMask
        return create_masks_for_generate(config, attention_mask=attention_mask, **kwargs)

    def _prepare_generated_length(self, generation_config: Any, **kwargs: Any) -> Any:
        """Refuse a prompt that leaves no room for the default length, where the base class advises to raise that."""
        generation_config = super()._prepare_generated_length(generation_config, **kwargs)
        if kwargs["has_default_max_length"] and generation_config.max_new_tokens is None:
            self.transformer.check_length(kwargs["input_ids_length"] + 1)
        # of this call, whose config is a copy
        generation_config._num_new_tokens = generation_config.max_length - kwargs["input_ids_length"]
        return generation_config

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
        *args: Any,
    ) -> Any:
        """Refuse a text that learned positions cannot hold, before `generate` runs the model; padding takes none."""
        num_tokens = max_cache_length + 1
        positions = model_kwargs.get("position_ids")  # of the prompt, and of what is in a cache
        if positions is not None and positions.numel():
            num_tokens = int(positions.max()) + 1 + generation_config._num_new_tokens
        self.transformer.check_length(num_tokens)
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length, *args
        )

    def _get_candidate_generator(self, generation_config: Any, **kwargs: Any) -> Any:
        """Cut drafts, which assisted generation checks all at once, where the text ends; there may be no position."""
        generator = super()._get_candidate_generator(generation_config=generation_config, **kwargs)
        get_candidates, longest = generator.get_candidates, generation_config.max_length - 1

        def get_cut_candidates(input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            ids, logits = get_candidates(input_ids, **kwargs)
            ids = ids[:, :longest]
            return ids, None if logits is None else logits[:, : ids.shape[1] - input_ids.shape[1]]

        generator.get_candidates = get_cut_candidates
        return generator


def _check_reduction(reduction: str, label_smoothing: float, num_items_in_batch: Tensor | int | None) -> None:
    """Raise a `ValueError` for a reduction that does not exist, or does not go with the other arguments."""
    if reduction != "none":
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    if torch.is_grad_enabled():
        raise ValueError("reduction='none' gives losses without gradients; call the model under torch.no_grad()")
    if label_smoothing or num_items_in_batch is not None:
        raise ValueError("reduction='none' gives plain losses; leave out label_smoothing and num_items_in_batch")


def _num_scored(targets: Tensor, num_items_in_batch: Tensor | int | None, device: torch.device) -> Tensor | int:
    """What the summed loss is divided by.

    Of a training step in which nothing is scored it is 1: loss and gradients are 0. Without gradients the mean of
    nothing is NaN.
    """
    num_items = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    if isinstance(num_items, Tensor):
        num_items = num_items.to(device)
    return num_items + (num_items == 0) if torch.is_grad_enabled() else num_items


def _select_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions whose logits are wanted.

    Args:
        hidden_states: `[B, T, C]`.
        logits_to_keep: a number of last ones (0: all), indices `[T']`, indices of each row `[B, T']`, or a mask
            `[B, T]`, which flattens the rows.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)
    return hidden_states[:, logits_to_keep]


# transformers goes by these lists of names where it shifts the labels that the Trainer smooths, and where a pipeline
# or a model card asks what the model does. `AutoModel.register` and its like do not add to them.
MODEL_MAPPING_NAMES[GPT2HFConfig.model_type] = GPT2HFModel.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[GPT2HFConfig.model_type] = GPT2HFForCausalLM.__name__

__all__ = ["GPT2HFForCausalLM", "GPT2HFModel", "GPT2HFPreTrainedModel"]
