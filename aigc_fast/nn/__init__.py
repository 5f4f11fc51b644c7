"""Drop-in modules: the constructor, `state_dict` keys and `isinstance` of the torch.nn layer they stand for."""
