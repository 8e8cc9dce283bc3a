"""``python -m turbovlm``, which ``accelerate launch -m turbovlm`` needs."""

from turbovlm.cli import main

if __name__ == "__main__":
    main()
