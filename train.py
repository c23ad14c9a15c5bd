"""Train a language model on preferences: ``python train.py objective=dpo data=onpolicy``.

Every option: ``python train.py --help``.
"""

from lit_pref.app.train import main

if __name__ == "__main__":
    main()
