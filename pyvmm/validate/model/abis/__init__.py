"""The ABIs that the model knows: the rules, the state and the system of each."""
