"""The terms of Eq. 6, and a run's objective made of them."""
