"""A trained head of every kind, with features and labels to try it on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from oltr_ext.nn import FSLwFHead, LinearHead, LWSHead, OLTRHead, OpenMaxHead


def heads_of_every_kind():
    torch.manual_seed(2)
    x, y = torch.rand(60, 6) + F.one_hot(torch.arange(60) % 4, 6), torch.arange(60) % 4
    prior = torch.tensor([70_000.0, 300, 2, 0])
    oltr = OLTRHead(6, 4, class_prior=prior)
    oltr.init_from(None, x, y, classifier="means")
    oltr.prior_share.fill_(0.123456)
    fslwf = FSLwFHead(6, [25, 25, 5, 5])
    kept = torch.arange(60) < 20
    kept[y < 2] = True
    fslwf.init_from(torch.eye(4, 6), [(x[kept], y[kept])])
    openmax = OpenMaxHead(6, 4)
    openmax.start_at(torch.eye(4, 6) * 3)
    openmax.fit(x, y)
    heads = [LinearHead(6, 4, class_prior=prior), LWSHead(6, 4), oltr, fslwf, openmax]
    rows = y < 2
    return [(head, x[rows], y[rows]) for head in heads]
