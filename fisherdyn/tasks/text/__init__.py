"""The paper's tasks: trained in English, tested in other languages, with mBERT, XLM-R, mDeBERTa or another model.

    xnli    inference: trained on MNLI, tested on XNLI
    xcopa   choice of the cause or the effect: trained on COPA, tested on XCOPA
    xquad   extraction: trained on SQuAD v1.1, tested on XQuAD
    mlqa    extraction: trained on SQuAD v1.1, tested on MLQA

Each needs a model with its tokenizer, data, and for MAD-X an adapter for each language. They come from the Hugging Face
hub, at the revisions in `sources`, or from local folders. No remote code is ever run.
"""
