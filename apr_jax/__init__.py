"""Adaptive parallel reasoning in JAX: language models that fork and join their own reasoning inside one compiled program.

The public names by module; `import apr_jax` imports none of these modules, so that it costs nothing:

    apr_jax.decode: Engine, Problem, Progress, Sizes, decode
    apr_jax.record: Transcript, ThreadRecord, Log, Source, Stop, read, write
    apr_jax.protocols: Sequential, Samples, SpawnJoin, Outlined, Paths, Trials
    apr_jax.methods: Method, Sampling, Sequential, Samples, SpawnJoin, ThreadWeaver, Multiverse, NPR, ParallelR1, Parason
    apr_jax.pretrained: load_model, load_pretrained, save_pretrained, with_control_words
    apr_jax.pretrained.tokenizer: load
    apr_jax.tokenizer: TextCodec, Tokenizer, ChatTemplate
    apr_jax.model.config: ModelConfig, PRESETS
    apr_jax.sharding: make_mesh
    apr_jax.tasks.task: Task
    apr_jax.train.sft: SftConfig, run
    apr_jax.train.data: Data, Dataset, make
    apr_jax.evaluate.config: EvaluateConfig
    apr_jax.evaluate.methods: MethodConfig, RolloutConfig
    apr_jax.evaluate.runner: run
    apr_jax.evaluate.select: Selector, Candidate, Only, Majority, Weighted, Confident, Likeliest, Verifier
    apr_jax.evaluate.show: tree
    apr_jax.rl.rewards: Reward, Measure, Part, Case, total
    apr_jax.rl.estimators: Estimator, NAMED, advantages, loss
    apr_jax.rl.groups: GroupConfig, Groups, gather, refuse
    apr_jax.rl.batches: Batch, pack
    apr_jax.rl.gate: compare, require
    apr_jax.sweep.points: grid, zip, chain, where, seeds
    apr_jax.sweep.config: SweepConfig
    apr_jax.sweep.study: Study, Arm, Stage, Measure, Claim
"""
