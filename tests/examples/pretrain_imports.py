"""What the ranks of pretrain_ranks.py need: imported once, before they are forked."""

import timm
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.nn.parallel
import torch.utils.flop_counter

import jepakit
import jepakit.data
import jepakit.evaluation
import jepakit.interop
import jepakit.nn
import jepakit.optim

__all__ = ["jepakit", "timm", "torch"]
