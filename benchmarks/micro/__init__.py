"""The embedded scale: a generated language, its labelled tasks, and the backbones pretrained on it.

lexicon.py     the words and the classes they belong to (topic, opinion, place or time)
language.py    sentence patterns and who may use which pattern about whom
corpus.py      the unlabelled corpus for pretraining
tasks.py       nine labelled tasks with the columns, labels and split names of GLUE on the hub
backbones/     micro_bert, micro_roberta, micro_gpt2 and micro_t5_*, remade by `peft-bench pretrain`

The language is frozen: `language.LANGUAGE_VERSION` names it, tests pin its content, and it is never adjusted until a
claim about a parameter-efficient method holds. Controls alone shaped it (full fine-tuning, head only, full from
random initialization); docs/micro.md says where it is not calibrated.
"""
