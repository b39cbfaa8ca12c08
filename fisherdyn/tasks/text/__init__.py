"""The paper's own tasks: trained in English, tested in other languages, with mBERT, XLM-R, mDeBERTa or a model of one's own.

    xnli    inference: trained on MNLI, tested on XNLI
    xcopa   cause or effect, one of two: trained on COPA, tested on XCOPA
    xquad   extraction: trained on SQuAD v1.1, tested on XQuAD
    mlqa    the same training, tested on MLQA

Each needs a model with its tokenizer, a language adapter a language (for MAD-X), and data. They come from the Hugging Face
hub, at the revisions in `sources`, or from local folders; nothing is ever loaded that runs code of its own.
"""
