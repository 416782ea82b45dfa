"""Try what the stage that this job's environment names would need."""

import os
import subprocess

python = os.environ.get("MODELMILL_PYTHON", ".modelmill/environments/light/bin/python")
subprocess.run([python, "-m", "modelmill.conduct.in_project", "doctor"], check=True)
