import torch

from vtlvlm.recognizers.loading import made_on


def test_new_tensors_are_made_on_a_gpu_at_once_and_nothing_changes_on_a_cpu() -> None:
    with made_on(torch.device("meta")):  # stands for a GPU here
        assert torch.empty(1).device.type == "meta"
    modes = torch._C._len_torch_function_stack()
    with made_on(torch.device("cpu")):
        assert torch.empty(1).device.type == "cpu"
        assert torch._C._len_torch_function_stack() == modes  # transformers would ask for another way of loading
