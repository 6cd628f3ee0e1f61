"""One model, or one evaluation, over several processes of ``torch.distributed``.

Every process of a process group runs the same program. Each one, called a rank, holds whole heads: their rows of q, k and v,
their columns of o, and their part of the state. The MLP is split by its hidden elements, embedding and LM head by rows of the
vocabulary. The partial outputs of o and of the MLP are summed over the ranks (Megatron-LM, arXiv:1909.08053, sec. 3).

``torch.distributed.tensor.parallel`` splits in the same way, but only ``nn.Linear`` and ``nn.Embedding``. Here packed matrices
are split too, and several ranks may hold the same key/value head.
"""
