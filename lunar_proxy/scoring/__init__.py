"""UniRoute: which model answers a prompt best, decided in milliseconds on a CPU.

Jitkrittum et al., "Universal Model Routing for Efficient LLM Inference", arXiv 2502.08773.

A request, on its way through:

    text_of(messages) -> text                    which text is scored: the last user message
    Embedder.embed(text) -> vector               off the event loop, remembered by hash
    surface(text) -> features                    13 numbers about its form
    Router.decide(vector, features, candidates)  arithmetic alone -> Decision

and the nouns behind `decide`:

    Encoder      a sentence encoder in a directory (ONNX and tokenizer), or a StaticEncoder (a table
                 of token vectors); EmbedderId names it
    Clusters     the map from a vector to K clusters, shared by all models: `clusters.npz`
    Profile      one model's error on each cluster, with sources and dates: one JSON file
    Candidate    a model that may answer and what it costs; prices come in with the question, so
                 that a price change moves decisions without refitting
    Feedback     what users said of answers, kept apart from the profiles and reversible

Offline, for `lunar-proxy router`: `rows` reads graded prompts, `kmeans` and `learn` make Clusters,
`fit` makes Profiles, `evaluate` measures, `plot` draws, `judge` grades; `distill` makes a
StaticEncoder.

Nothing here is imported by a proxy whose config asks for no router: the modules need numpy, and
loading an Encoder needs onnxruntime and tokenizers, 50 MB together; a StaticEncoder needs
tokenizers alone. So import from the modules, inside the function that needs them:

    from lunar_proxy.scoring.router import Router
"""
