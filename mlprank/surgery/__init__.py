"""Edits of `nn.Module`s and nothing else: narrow networks, copies with other weights, torch's pruning masks."""
