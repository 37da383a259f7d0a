"""Guest memory: slots, regions with their page states, and one backend per kernel ABI."""
