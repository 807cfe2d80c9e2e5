"""NumPy reference of DeepSeek V4 in float64: whole sequence, batch of one, written for clarity.

No part of the engine is used, so agreement means something. It was checked against DeepSeek's published inference code and
against transformers 5.23 (architecture notes, section 10). Modes: qat="none" is the plain mathematics; qat="official"
adds the FP8 and FP4 round trips of the cache. Symbols: T tokens, D hidden, n streams, H heads, c head dim, r rotary
dims, W window, m compress ratio, S compressed rows.
"""

import math

import numpy as np

# ------------------------------------------------------------------------------------------------ number formats

E4M3 = np.array(
    [
        (m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        for e in range(16)
        for m in range(8)
    ][:127]
)  # 0 .. 448, code 127 is NaN
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def round_to_grid(x, grid):
    """Round |x| to the nearest entry of an ascending grid, ties to the even code; keeps the sign."""
    a = np.minimum(np.abs(x), grid[-1])
    hi = np.clip(np.searchsorted(grid, a), 1, len(grid) - 1)
    lo = hi - 1
    dl, dh = a - grid[lo], grid[hi] - a
    code = np.where(dl < dh, lo, np.where(dh < dl, hi, np.where(lo % 2 == 0, lo, hi)))
    return np.copysign(grid[code], x)


def block_roundtrip(x, block, grid, floor):
    """Quantize and dequantize the last axis in blocks, scale = 2^ceil(log2(max(amax, floor) / grid_max))."""
    s = x.shape
    b = x.reshape(*s[:-1], s[-1] // block, block)
    amax = np.maximum(np.abs(b).max(-1, keepdims=True), floor).astype(np.float32)
    mant, expo = np.frexp(
        amax * np.float32(1.0 / grid[-1])
    )  # value = mant * 2^expo, mant in [0.5, 1)
    scale = np.ldexp(
        1.0, np.where(mant == 0.5, expo - 1, expo)
    )  # exact powers of two stay themselves
    return (round_to_grid(b / scale, grid) * scale).reshape(s).astype(x.dtype)


def fp8_kv(x):
    return block_roundtrip(x, 64, E4M3, 1e-4)


def fp4_act(x):
    return block_roundtrip(x, 32, E2M1, 6 * 2.0**-126)


def hadamard(x):
    """Normalised Walsh-Hadamard transform of the last axis (natural / Sylvester order)."""
    n = x.shape[-1]
    y = x.reshape(-1, n).copy()
    h = 1
    while h < n:
        y = y.reshape(-1, n // (2 * h), 2, h)
        y = np.stack([y[:, :, 0] + y[:, :, 1], y[:, :, 0] - y[:, :, 1]], axis=2).reshape(-1, n)
        h *= 2
    return (y * n**-0.5).reshape(x.shape)


class Config:
    def __init__(self, c):
        g = c.get
        self.raw = c
        self.vocab, self.D, self.layers = c["vocab_size"], c["hidden_size"], c["num_hidden_layers"]
        self.H, self.c, self.r = c["num_attention_heads"], c["head_dim"], c["qk_rope_head_dim"]
        self.q_lora, self.o_groups, self.o_lora = c["q_lora_rank"], c["o_groups"], c["o_lora_rank"]
        self.W, self.ratios = c["sliding_window"], list(c["compress_ratios"])
        self.iH, self.ic, self.topk = c["index_n_heads"], c["index_head_dim"], c["index_topk"]
        self.experts, self.k, self.inter = (
            c["n_routed_experts"],
            c["num_experts_per_tok"],
            c["moe_intermediate_size"],
        )
        self.hash_layers, self.route_scale = (
            g("num_hash_layers", 0),
            g("routed_scaling_factor", 1.0),
        )
        self.limit, self.eps = g("swiglu_limit", 0.0), g("rms_norm_eps", 1e-6)
        self.n, self.sink_iters, self.hc_eps = (
            c["hc_mult"],
            g("hc_sinkhorn_iters", 20),
            g("hc_eps", 1e-6),
        )
        self.theta, self.ctheta, self.yarn = (
            g("rope_theta", 1e4),
            g("compress_rope_theta", 16e4),
            g("rope_scaling"),
        )
        self.mtp = g("num_nextn_predict_layers", 0)
        assert g("scoring_func", "sqrtsoftplus") == "sqrtsoftplus" and g("n_shared_experts", 1) == 1


# ------------------------------------------------------------------------------------------------ small pieces


def rmsnorm(x, eps, weight=None):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def inv_freq(cfg, compressed_layer):
    """r/2 angular frequencies, float32 as in DeepSeek's code.  YaRN interpolation only on layers with a compressor;
    no magnitude factor on either kind."""
    f32 = np.float32
    theta = cfg.ctheta if compressed_layer else cfg.theta
    f = (f32(1) / f32(theta) ** (np.arange(0, cfg.r, 2, dtype=f32) / f32(cfg.r))).astype(f32)
    y = cfg.yarn
    if not compressed_layer or not y or y["original_max_position_embeddings"] <= 0:
        return f

    def dim_for(rotations):
        return (
            cfg.r
            * math.log(y["original_max_position_embeddings"] / (rotations * 2 * math.pi))
            / (2 * math.log(theta))
        )

    lo = max(math.floor(dim_for(y["beta_fast"])), 0)
    hi = min(math.ceil(dim_for(y["beta_slow"])), cfg.r - 1)
    ramp = np.clip((np.arange(cfg.r // 2, dtype=f32) - lo) / f32(max(hi - lo, 0.001)), 0, 1)
    keep = f32(1) - ramp  # 1: original frequency, 0: divided by factor
    return (f / f32(y["factor"]) * (f32(1) - keep) + f * keep).astype(f32)


def rope(x, positions, freqs, inverse=False):
    """Rotate the LAST 2*len(freqs) channels, adjacent pairs (2i, 2i+1).  x: [T, ..., d], positions: [T].
    The angle is a float32 product, as in DeepSeek's code; inverse = conjugate rotation."""
    ang = (positions.astype(np.float32)[:, None] * freqs[None]).astype(np.float64)
    cos, sin = np.cos(ang).astype(x.dtype), np.sin(ang).astype(x.dtype)
    if inverse:
        sin = -sin
    shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (len(freqs),)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    y = x.copy()
    tail = y[..., x.shape[-1] - 2 * len(freqs) :]
    even, odd = tail[..., 0::2].copy(), tail[..., 1::2].copy()
    tail[..., 0::2] = even * cos - odd * sin
    tail[..., 1::2] = even * sin + odd * cos
    return y


# ------------------------------------------------------------------------------------------------ hyper-connections


def hc_mixes(X, fn, eps):
    """X [T, n, D] -> [T, rows(fn)]: weightless RMS norm over all n*D numbers, then a float32 projection."""
    flat = X.reshape(X.shape[0], -1)
    return (flat @ fn.T) / np.sqrt((flat * flat).mean(-1, keepdims=True) + eps)


def hc_pre(cfg, X, fn, scale, base):
    """Returns the sublayer input [T, D], post [T, n] and comb [T, n, n]."""
    n, e = cfg.n, cfg.hc_eps
    mix = hc_mixes(X, fn, cfg.eps)
    pre = sigmoid(mix[:, :n] * scale[0] + base[:n]) + e
    post = 2 * sigmoid(mix[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mix[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(-1, n, n)
    comb = softmax(comb, -1) + e  # rows first, eps after the softmax
    comb = comb / (comb.sum(-2, keepdims=True) + e)  # then columns
    for _ in range(cfg.sink_iters - 1):
        comb = comb / (comb.sum(-1, keepdims=True) + e)
        comb = comb / (comb.sum(-2, keepdims=True) + e)
    return (pre[:, :, None] * X).sum(1), post, comb


def hc_post(X, y, post, comb):
    """out[k] = post[k] * y + sum_j comb[j, k] * X[j]   (sum over the FIRST index of comb)."""
    return post[:, :, None] * y[:, None, :] + np.einsum("tjk,tjd->tkd", comb, X)


def hc_head(cfg, X, fn, scale, base):
    pre = sigmoid(hc_mixes(X, fn, cfg.eps) * scale[0] + base) + cfg.hc_eps
    return (pre[:, :, None] * X).sum(1)


# ------------------------------------------------------------------------------------------------ compressor, indexer


def compress(cfg, w, p, x, m, d, freqs):
    """All complete rows of one compressor, before the cache round trip.  p: name prefix, d: row width.
    m == 4 layers overlap: wkv/wgate/ape are 2d wide; channels [0, d) feed the NEXT row, [d, 2d) the current one."""
    S = x.shape[0] // m
    kv = (x @ w[p + "wkv.weight"].T)[: S * m].reshape(S, m, -1)
    sc = (x @ w[p + "wgate.weight"].T)[: S * m].reshape(S, m, -1) + w[p + "ape"][None]
    if kv.shape[-1] == 2 * d:  # overlapping windows: 2m slots per row
        zero, ninf = np.zeros_like(kv[:1, :, :d]), np.full_like(sc[:1, :, :d], -np.inf)
        kv = np.concatenate([np.concatenate([zero, kv[:-1, :, :d]])[:S], kv[:, :, d:]], axis=1)
        sc = np.concatenate([np.concatenate([ninf, sc[:-1, :, :d]])[:S], sc[:, :, d:]], axis=1)
    rows = (
        (kv * softmax(sc, axis=1)).sum(1) if S else kv.reshape(0, d)
    )  # softmax over slots, per channel
    rows = rmsnorm(rows, cfg.eps, w[p + "norm.weight"])
    return rope(rows, np.arange(S) * m, freqs)  # a row's position is its first token's


def indexer_scores(cfg, w, p, x, qr, rows, pos, freqs, qat):
    """[T, S] lightning-indexer scores (not masked)."""
    q = (qr @ w[p + "wq_b.weight"].T).reshape(x.shape[0], cfg.iH, cfg.ic)
    q = rope(q, pos, freqs)
    if qat == "official":
        q = fp4_act(hadamard(q))
    wt = (x @ w[p + "weights_proj.weight"].T) * (cfg.ic**-0.5 * cfg.iH**-0.5)
    s = np.zeros((x.shape[0], rows.shape[0]), x.dtype)
    for h in range(cfg.iH):
        s += np.maximum(q[:, h] @ rows.T, 0) * wt[:, h : h + 1]
    return s


def top_rows(scores, visible, k):
    """Boolean [T, S]: the k best visible rows of each query (lowest row index wins a tie), and the score gap between
    the last row taken and the best one left out (inf when nothing is left out)."""
    T, S = scores.shape
    take, gap = np.zeros((T, S), bool), np.full(T, np.inf)
    for t in range(T):
        v = int(visible[t])
        order = np.argsort(-scores[t, :v], kind="stable")
        take[t, order[:k]] = True
        if v > k:
            gap[t] = scores[t, order[k - 1]] - scores[t, order[k]]
    return take, gap


# ------------------------------------------------------------------------------------------------ attention


def attention(cfg, w, p, x, m, qat, trace=None):
    """x [T, D] (already normalised) -> [T, D]."""
    T, H, c = x.shape[0], cfg.H, cfg.c
    pos, freqs, nope = np.arange(T), inv_freq(cfg, m != 0), cfg.c - cfg.r
    qr = rmsnorm(x @ w[p + "wq_a.weight"].T, cfg.eps, w[p + "q_norm.weight"])
    q = rmsnorm((qr @ w[p + "wq_b.weight"].T).reshape(T, H, c), cfg.eps)  # per head, no weight
    q = rope(q, pos, freqs)
    kv = rmsnorm(
        x @ w[p + "wkv.weight"].T, cfg.eps, w[p + "kv_norm.weight"]
    )  # ONE row: key and value of all heads
    kv = rope(kv, pos, freqs)
    if qat == "official":
        kv[:, :nope] = fp8_kv(kv[:, :nope])
    mask = (pos[None] <= pos[:, None]) & (
        pos[None] > pos[:, None] - cfg.W
    )  # W rows including the query's own
    if m:
        rows = compress(cfg, w, p + "compressor.", x, m, c, freqs)
        if qat == "official":
            rows[:, :nope] = fp8_kv(rows[:, :nope])
        S = rows.shape[0]
        visible = (pos + 1) // m  # row s is visible from token (s+1)*m - 1 on
        take = np.arange(S)[None] < visible[:, None]
        if m == 4:
            ip = p + "indexer."
            irows = compress(cfg, w, ip + "compressor.", x, m, cfg.ic, freqs)
            if qat == "official":
                irows = fp4_act(hadamard(irows))
            score = indexer_scores(cfg, w, ip, x, qr, irows, pos, freqs, qat)
            take, gap = top_rows(score, visible, cfg.topk)
            if trace is not None:
                trace["index_gap"], trace["index_take"] = gap, take
        kv, mask = np.concatenate([kv, rows]), np.concatenate([mask, take], axis=1)
    s = np.einsum("thc,sc->hts", q, kv) * c**-0.5
    s = np.where(mask[None], s, -np.inf)
    sink = w[p + "attn_sink"].astype(x.dtype)[:, None]
    top = np.maximum(s.max(-1), sink)  # the sink is one more logit with a zero value
    e = np.exp(s - top[:, :, None])
    prob = e / (e.sum(-1) + np.exp(sink - top))[:, :, None]
    o = np.einsum("hts,sc->thc", prob, kv)
    o = rope(o, pos, freqs, inverse=True)  # undo the value's rotation at the query's place
    g = o.reshape(T, cfg.o_groups, -1)  # consecutive heads form a group
    wa = w[p + "wo_a.weight"].reshape(cfg.o_groups, cfg.o_lora, -1)
    low = np.einsum("tgi,goi->tgo", g, wa).reshape(T, -1)
    if trace is not None:
        trace["kv_rows"] = kv[T:].copy()
    return low @ w[p + "wo_b.weight"].T


# ------------------------------------------------------------------------------------------------ mixture of experts


def swiglu_mlp(cfg, w, p, x, weight=None):
    gate, up = x @ w[p + "w1.weight"].T, x @ w[p + "w3.weight"].T
    if cfg.limit > 0:
        gate, up = np.minimum(gate, cfg.limit), np.clip(up, -cfg.limit, cfg.limit)
    h = gate * sigmoid(gate) * up
    if weight is not None:
        h = h * weight[:, None]
    return h @ w[p + "w2.weight"].T


def moe(cfg, w, p, x, ids, trace=None):
    """Routed experts plus the shared expert.  The layer routes by token id when it has a tid2eid table."""
    score = np.sqrt(softplus(x @ w[p + "gate.weight"].T))
    if p + "gate.tid2eid" in w:
        pick = w[p + "gate.tid2eid"][ids].astype(np.int64)
    else:
        biased = score + w[p + "gate.bias"]  # the bias chooses, it never weighs
        order = np.argsort(-biased, axis=-1, kind="stable")
        pick = order[:, : cfg.k]
        if trace is not None and cfg.k < cfg.experts:
            srt = np.take_along_axis(biased, order, -1)
            trace["route_gap"] = srt[:, cfg.k - 1] - srt[:, cfg.k]
    if trace is not None:
        trace["experts"] = pick
    wt = np.take_along_axis(score, pick, -1)
    wt = wt / wt.sum(-1, keepdims=True) * cfg.route_scale
    y = swiglu_mlp(cfg, w, p + "shared_experts.", x)
    for e in range(cfg.experts):
        t, slot = np.nonzero(pick == e)
        if len(t):
            np.add.at(y, t, swiglu_mlp(cfg, w, f"{p}experts.{e}.", x[t], wt[t, slot]))
    return y


# ------------------------------------------------------------------------------------------------ model


def block(cfg, w, p, X, m, ids, qat, trace=None):
    x, post, comb = hc_pre(
        cfg, X, w[p + "hc_attn_fn"], w[p + "hc_attn_scale"], w[p + "hc_attn_base"]
    )
    x = rmsnorm(x, cfg.eps, w[p + "attn_norm.weight"])
    X = hc_post(X, attention(cfg, w, p + "attn.", x, m, qat, trace), post, comb)
    x, post, comb = hc_pre(cfg, X, w[p + "hc_ffn_fn"], w[p + "hc_ffn_scale"], w[p + "hc_ffn_base"])
    x = rmsnorm(x, cfg.eps, w[p + "ffn_norm.weight"])
    return hc_post(X, moe(cfg, w, p + "ffn.", x, ids, trace), post, comb)


def forward(cfg, w, ids, qat="none", traces=None):
    """ids [T] -> (logits [T, vocab], final stream state [T, n, D])."""
    ids = np.asarray(ids)
    X = np.repeat(
        w["embed.weight"][ids][:, None, :], cfg.n, axis=1
    )  # every stream starts as the embedding
    for i in range(cfg.layers):
        tr = None if traces is None else {}
        X = block(cfg, w, f"layers.{i}.", X, cfg.ratios[i], ids, qat, tr)
        if traces is not None:
            tr["X"] = X
            traces.append(tr)
    x = hc_head(cfg, X, w["hc_head_fn"], w["hc_head_scale"], w["hc_head_base"])
    return rmsnorm(x, cfg.eps, w["norm.weight"]) @ w["head.weight"].T, X
