"""The roles, and the only folder that knows all the parts and wires them.

learner: tasks -> tickets -> (samplers) -> groups -> batch -> train_step -> new version
sampler: tickets -> weights -> completions -> rewards -> groups
local:   one learner and some samplers as processes of one machine
"""
