"""What rank 0 of several processes tells the others to do with it."""

from enum import IntEnum


class Command(IntEnum):
    """The first number of a message; data_parallel.py and sharded_model.py say which numbers follow."""

    END = 0
    STEP = 1  # compute the gradients of a share of a batch, and update the weights
    SAVE_OPTIMIZER = 2  # take part in reading the optimizer's state
    LOAD_OPTIMIZER = 3  # receive the optimizer's state of a resumed run
    RECEIVE_WEIGHTS = 4
    # of sharded weights only:
    FORWARD = 5  # a pass without gradients
    GATHER = 6  # take part in reading the weights
    SCATTER = 7  # receive this process's part of the weights
