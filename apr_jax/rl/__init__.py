"""Reinforcement learning on the engine's own rollouts: its parts are pure functions, which `apr_jax.rl.run` calls in this order.

groups.refuse(sampling, needs)                                   once, before anything is decoded
found = groups.gather(transcripts, sampling, config)             the samples of a step
values, parts = rewards.total(parts, cases, step)                for each group; a case has the transcript found.alone(i)
credit = estimators.advantages(estimator, values, found.group)   with *found.tree() for estimators of trees
batch = batches.pack(found, credit, estimator, config)           rows and labels of one shape
scores = scoring.score(graph, params, rows, temperature, control)
gate.require(gate.compare(...), dtype)                           logged at every step, required before the first
loss, sums = estimators.loss(estimator, scores.logprob, scores.entropy, labels, batch.denominator, old, reference, ...)
"""
