"""Polymoe's adapters in a plain PyTorch loop: two tasks learn from one frozen torch model.

Needs: pip install polymoe[torch]
"""

import torch

from polymoe.interop.torch import inject, parameter_groups, save_adapter

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
inject(model, "poly", tasks=["sum", "sign"], target_modules=["0", "2"], r=4, noise="off")
optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2))

x = torch.randn(32, 16)
task_ids = ["sum", "sign"] * 16  # of each example; numbers do as well
target = torch.stack([row.sum().repeat(8) if i % 2 == 0 else row[:8].sign() for i, row in enumerate(x)])
for step in range(200):
    loss = torch.nn.functional.mse_loss(model(x, task_ids=task_ids), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step == 199:
        print(f"step {step:3d}  loss {loss.item():.4f}")

save_adapter(model, "adapter")  # polymoe.interop.torch.load_adapter(model, "adapter") puts it in again
print("saved to ./adapter")
