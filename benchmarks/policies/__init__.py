"""Our policies head to head with those of other libraries, on recorded outcomes.

Every policy sees the same features, order of requests, uniform draws, missing rewards and delay.
"""
