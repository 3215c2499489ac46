"""Experiment cards. `base.py` holds every key; a card changes some of them."""
