"""``python -m turbovlm``, which ``accelerate launch -m turbovlm`` needs."""

from turbovlm_workbench.cli import main

if __name__ == "__main__":
    main()
