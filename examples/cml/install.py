"""Make the environments of the stages below the project, from the locks that ship."""

import os
import subprocess

# Runtimes let pip install for the user, which an environment of its own refuses.
environment = {**os.environ, "PIP_USER": "0"}
for name in ("light", "train", "quantize"):
    command = ["sh", "images/environment.sh", name, f".modelmill/environments/{name}"]
    subprocess.run(command, check=True, env=environment)
