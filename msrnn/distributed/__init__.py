"""One model, or one evaluation, over several processes of ``torch.distributed``."""
