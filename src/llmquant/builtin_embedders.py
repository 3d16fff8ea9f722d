"""The embedders included in llmquant and their evaluators, declared with strings only as in `llmquant.builtin`."""

from __future__ import annotations

from functools import partial

from llmquant.plugins.spec import PluginSpec

TORCH = ("torch>=2.8", "transformers>=5.22", "accelerate>=1.10", "safetensors>=0.6")
_EMBED = 'pip install "llmquant[embed]"'
# mteb imports sentence-transformers wherever it evaluates.
_MTEB = (*TORCH, "mteb>=2.26", "sentence-transformers>=6.0", "pillow>=11.3")
_IMAGES = (*TORCH, "pillow>=11.3")
_ADAPTERS = (*_IMAGES, "peft>=0.20")

_embedder = partial(PluginSpec, "embedder", accepts=(), install=_EMBED)
_evaluator = partial(PluginSpec, "evaluator", accepts=("embedder",), requires=_MTEB, install=_EMBED, vectors=True)

EMBEDDERS: tuple[PluginSpec, ...] = (
    _embedder(
        name="bigemma3",
        summary="Gemma 3, one vector per item (BiGemma3, NetraEmbed).",
        options="llmquant.embedders.gemma3.options:BiGemma3Options",
        target="llmquant.embedders.gemma3.embedder:BiGemma3",
        presets={"bigemma3-4b-embedding": {"checkpoint": "Cognitive-Lab/NetraEmbed"}},
        checkpoints=("Cognitive-Lab/NetraEmbed*",),
        requires=_ADAPTERS,
    ),
    _embedder(
        name="colgemma3",
        summary="Gemma 3, late interaction (ColGemma3, ColNetraEmbed).",
        options="llmquant.embedders.gemma3.options:ColGemma3Options",
        target="llmquant.embedders.gemma3.embedder:ColGemma3",
        checkpoints=("Cognitive-Lab/ColNetraEmbed*",),
        requires=_ADAPTERS,
    ),
    _embedder(
        name="colpali_engine",
        summary="Document retrievers of colpali-engine: late interaction over page images.",
        options="llmquant.embedders.colpali_engine.options:ColpaliEngineOptions",
        target="llmquant.embedders.colpali_engine.embedder:ColpaliEngine",
        presets={
            "colpali": {"checkpoint": "vidore/colpali-v1.3", "architecture": "colpali"},
            "colqwen2": {"checkpoint": "vidore/colqwen2-v1.0", "architecture": "colqwen2"},
            "colqwen2.5": {"checkpoint": "vidore/colqwen2.5-v0.2", "architecture": "colqwen2.5"},
            "colqwen3": {"checkpoint": "TomoroAI/tomoro-colqwen3-embed-4b", "architecture": "colqwen3"},
            "colsmol": {"checkpoint": "vidore/colSmol-500M", "architecture": "colsmol"},
            "colidefics3": {"checkpoint": "vidore/colSmol-500M", "architecture": "colsmol"},
            "modernvbert": {"checkpoint": "ModernVBERT/colmodernvbert", "architecture": "modernvbert"},
            "bimodernvbert": {"checkpoint": "ModernVBERT/bimodernvbert", "architecture": "bimodernvbert"},
        },
        checkpoints=(
            "vidore/colpali*",
            "vidore/colqwen2-*",
            "vidore/colqwen2.5-*",
            "vidore/colSmol-*",
            "ModernVBERT/colmodernvbert*",
            "ModernVBERT/bimodernvbert*",
        ),
        requires=(*_ADAPTERS, "colpali-engine>=0.3.18"),
        install='pip install "llmquant[colpali]"',
    ),
    _embedder(
        name="clip",
        summary="CLIP, SigLIP and SigLIP 2: texts and images in one vector space.",
        options="llmquant.embedders.clip.options:ClipOptions",
        target="llmquant.embedders.clip.embedder:Clip",
        presets={"siglip": {"checkpoint": "google/siglip-so400m-patch14-384"}},
        checkpoints=("google/siglip-*", "google/siglip2-*", "openai/clip-*", "laion/CLIP-*"),
        requires=_IMAGES,
    ),
    _embedder(
        name="gme",
        summary="GME: Qwen2-VL as an embedder of texts, images and their combination.",
        options="llmquant.embedders.gme.options:GmeOptions",
        target="llmquant.embedders.gme.embedder:Gme",
        checkpoints=("Alibaba-NLP/gme-Qwen2-VL-*",),
        requires=_IMAGES,
    ),
    _embedder(
        name="sentence_transformers",
        summary="Any sentence-transformers model.",
        options="llmquant.embedders.sentence_transformers.options:SentenceTransformersOptions",
        target="llmquant.embedders.sentence_transformers.embedder:SentenceTransformers",
        checkpoints=("sentence-transformers/*",),
        requires=(*TORCH, "sentence-transformers>=6.0"),
    ),
    _embedder(
        name="ocr_text",
        summary="OCR of page images, then embedding of the text; runs offline.",
        options="llmquant.embedders.ocr_text.options:OcrTextOptions",
        target="llmquant.embedders.ocr_text.embedder:OcrText",
        requires=(*_IMAGES, "sentence-transformers>=6.0", "rapidocr-onnxruntime>=1.4"),
        install='pip install "llmquant[ocr]"',
        version="2",
    ),
    _embedder(
        name="random",
        summary="Random unit vectors: the lower bound of every retrieval metric.",
        options="llmquant.embedders.chance.options:ChanceOptions",
        target="llmquant.embedders.chance.embedder:Chance",
        requires=("torch>=2.8",),
    ),
    _embedder(
        name="mteb_model",
        summary="Any model in mteb with one vector per item.",
        options="llmquant.embedders.mteb_model.options:MtebModelOptions",
        target="llmquant.embedders.mteb_model.embedder:MtebModelEmbedder",
        requires=_MTEB,
    ),
)

EMBEDDER_EVALUATORS: tuple[PluginSpec, ...] = (
    _evaluator(
        name="mteb",
        summary="Tasks and benchmarks of mteb: retrieval, reranking, similarity, classification.",
        options="llmquant.evaluators.mteb.options:MtebOptions",
        target="llmquant.evaluators.mteb.evaluator:Mteb",
        documents=True,
        version="2",  # uses the prompts of tasks, and no role's prompt where mteb uses none
    ),
    _evaluator(
        name="retrieval",
        summary="Your own pages (a folder or a PDF) and queries, scored like mteb.",
        options="llmquant.evaluators.page_set.options:LocalSetOptions",
        target="llmquant.evaluators.page_set.evaluator:LocalSet",
        documents=True,
        version="3",  # draws the content of form fields in PDFs
    ),
    _evaluator(
        name="beir",
        summary="A text corpus in BEIR's format (a folder), scored like mteb.",
        options="llmquant.evaluators.beir.options:BeirOptions",
        target="llmquant.evaluators.beir.evaluator:Beir",
        documents=True,
    ),
    _evaluator(
        name="drift",
        summary="Distance of an embedder's vectors and rankings from the baseline's.",
        options="llmquant.evaluators.drift.options:DriftOptions",
        target="llmquant.evaluators.drift.evaluator:Drift",
        reference=True,
        documents=True,
        version="2",  # uses the prompts of tasks, and one number of results for subsets of any size
    ),
    _evaluator(
        name="query_latency",
        summary="Milliseconds to encode one query and to search a collection in the stored vector format.",
        options="llmquant.evaluators.speed.options:QueryLatencyOptions",
        target="llmquant.evaluators.speed.query_latency:QueryLatency",
        requires=("torch>=2.8",),
        hardware=True,
    ),
    _evaluator(
        name="indexing",
        summary="Documents per second, and per dollar, while a corpus is encoded.",
        options="llmquant.evaluators.speed.indexing_options:IndexingOptions",
        target="llmquant.evaluators.speed.indexing:Indexing",
        requires=("torch>=2.8",),
        hardware=True,
        vectors=False,
    ),
)
