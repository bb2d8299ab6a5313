"""Devices, the processes of one run, and the clusters that start them."""
