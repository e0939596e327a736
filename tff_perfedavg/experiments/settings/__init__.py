"""What a run is: its settings, checked, and the flags that say them."""
