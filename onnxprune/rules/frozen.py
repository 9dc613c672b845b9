"""Operators that keep all positions of every axis they touch, and why."""

from __future__ import annotations

from onnxprune.rules.registry import keeps_all

keeps_all(
    *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct"),
    *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
    because="works on more than tensors",
)
keeps_all(
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    because="draws its random numbers position by position",
)
keeps_all("BlackmanWindow", "HammingWindow", "HannWindow", because="makes a number for each moment of a window")
keeps_all("MelWeightMatrix", because="makes a number for each pair of frequencies")
keeps_all("EyeLike", because="tells rows and columns apart by number")
keeps_all("NonMaxSuppression", because="compares its boxes by number")
keeps_all("NonZero", because="tells where numbers are that are not zero")
keeps_all("AffineGrid", because="makes coordinates in space")
keeps_all("ImageDecoder", because="makes pixels of the bytes of a file")
keeps_all("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", because="works on texts")
keeps_all("TfIdfVectorizer", because="counts words by number")
keeps_all(
    *("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    because="compares classes, which labels know by number",
)
keeps_all("FlexAttention", domain="ai.onnx.preview", because="has a body that is not analysed")
keeps_all(
    *("Adagrad", "Adam", "Gradient", "Momentum"),
    domain="ai.onnx.preview.training",
    because="trains; only models for inference are pruned",
)
