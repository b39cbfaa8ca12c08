"""A synthetic world: one grammar, ten languages, and a small encoder pretrained on all of them.

    python -m fisherdyn.tasks.world             # sentences in three languages, and each language's distance from the source
    python -m fisherdyn.tasks.world.pretrain --out DIR    # how the shipped encoder was made

It exists because pretrained multilingual models are not available everywhere. Precedents: K et al. 2020, "Cross-lingual
ability of multilingual BERT"; Dufter & Schütze 2020, "Identifying elements essential for BERT's multilinguality";
Deshpande et al. 2022, "When is BERT multilingual?".

From meanings to tasks, each file builds on those above it:

    concepts    what can be talked about
    grammar     meanings, and what follows from what
    languages   how each language says a meaning
    corpus      pretraining text
    pretrain    the encoder and its language adapters
    encoder     the shipped encoder under a task's head
    task        what the three tasks share
    inference, choice, span    the tasks
"""
