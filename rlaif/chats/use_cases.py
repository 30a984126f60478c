"""What a prompt is for, by plain rules in English and Chinese, in the ten use cases of InstructGPT's prompts
(Ouyang et al. 2022, Table 1); and in which language it is.

The rules look for the words with which people ask: the first use case whose words are found is the answer.
They are a rough count of what users ask for, not a label to train on; tests/unit/test_chats_stats.py measures
how often they agree with labels by hand, on prompts that they were written with and on others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.types import Message

__all__ = ["INSTRUCT_GPT", "language_of", "use_case_of"]

INSTRUCT_GPT = {
    "generation": 0.456,
    "open_qa": 0.124,
    "brainstorming": 0.112,
    "chat": 0.084,
    "rewrite": 0.066,
    "summarization": 0.042,
    "classification": 0.035,
    "other": 0.035,
    "closed_qa": 0.026,
    "extract": 0.019,
}
"""Shares of the prompts in the API dataset of Ouyang et al. 2022, Table 1."""

THIS = r"(?:this|these|the following|my|the text|the passage|the article|below)"
WORKS = (
    r"(?:story|stories|poem|haiku|limerick|sonnet|stanza|verse|rhyme|rap|song|lyrics|joke|riddle|fable|tale|scene|monologue|"
    r"dialogue|conversation|play|script|speech|toast|eulogy|obituary|letter|e-?mail|message|text|note|card|invitation|"
    r"announcement|reply|post|tweet|caption|headline|slogan|tagline|bio|pitch|advert?|flyer|essay|article|blog|report|review|"
    r"guide|instructions|recipe|checklist|plan|timetable|schedule|agenda|outline|resume|cv|page|paragraph|sentences?|"
    r"description|horoscope|affirmation|code|function|program|formula|macro|website)s?"
)
ASKING = (
    r"(?:who|what|when|where|why|how|which|whose|is|are|was|were|do|does|did"
    r"|can|could|should|will|would|has|have)"
)
RULES = {
    "summarization": (
        r"\bsummar(?:y|i[sz]e\w*)\b",
        r"\btl;?dr\b",
        r"\b(?:key|main) (?:points|ideas) (?:of|from|in)\b",
        r"\bsum up\b|\breduce this\b|\bkey findings\b|\btakeaways?\b",
        r"\bin a nutshell\b|\bgist of\b|\bcondense\b|\bin one sentence\b",
        r"总结|概括|概述|摘要|归纳|主要内容",
    ),
    "extract": (
        r"\bextract\b|\bpull out\b|\bpick out\b",
        rf"\b(?:find|list|name) (?:all|every|each)\b.{{3,40}}\b(?:in|from|mentioned)\b.{{0,12}}{THIS}",
        r"\b(?:find|list|name) (?:all|every|each)\b.{3,40}\bmentioned\b",
        rf"\bget\b.{{3,40}}\bout of {THIS}",
        r"提取|抽取|(?:找|挑|摘|列)出.{0,10}(?:文|句|段)|文中.{0,10}(?:找|挑|摘|列)出",
    ),
    "classification": (
        r"\bclassif(?:y|ication)\b|\bcategori[sz]e\b|\bsentiment\b|\bwhich (?:category|class|label)\b",
        rf"\b(?:decide|tell|determine|judge) (?:me )?(?:whether|if) {THIS}",
        rf"\bis {THIS}\b.{{0,60}}\bor\b",
        r"\blabel (?:each|every|the|these|this|all)\b|\bsort (?:these|the following|each)\b",
        r"\bpositive(?:,| or) (?:negative|mixed|neutral)\b|\bgroup these\b|\bwhat language\b",
        r"\bwhich (?:of these|department|type|kind of)\b.{0,60}:|\bis the (?:tone|mood|intent) of\b",
        r"分类|归类|判断.{0,20}(?:是否|还是|是不是|类)|情感(?:分析|倾向)|属于(?:哪|什么)",
    ),
    "closed_qa": (
        r"\b(?:according to|based on|(?:answer )?from|given|read) (?:the |this )?(?:following )?"
        r"(?:text|passage|article|paragraph|context|document|story)\b",
        r"\b(?:context|passage):[\s\S]*\bquestion:",
        r"\busing only\b|\bif the (?:document|text|passage|article)s? says?\b",
        r"['‘“\"][^'‘“\"]{150,}['’”\"][\s\S]{0,200}\?",
        r"根据.{0,6}(?:文|材料|段落|内容)|阅读.{0,8}(?:文|材料|段)",
    ),
    "rewrite": (
        r"\b(?:re-?write|rephrase|reword|paraphrase|proof-?read|translate|simplify|shorten)\b",
        r"\b(?:edit|correct|fix|improve|polish)\b.{0,30}"
        r"\b(?:grammar|spelling|sentence|paragraph|text|email|essay|letter|writing)\b",
        r"\bmake (?:this|it|the following|my \w+)\b.{0,30}\b(?:more|less|sound|shorter|longer|\w+er)\b",
        r"\bmake it rhyme\b|\bpast tense\b|\bpassive voice\b|\bjargon\b|\bcut (?:it|this) (?:in|to|down)\b",
        r"\bsay (?:this|it) (?:more|less|in)\b|\bhow (?:would|do) (?:you|i|we) say\b",
        rf"\b(?:change|convert|turn) {THIS}\b.{{0,40}}\b(?:to|into)\b|\bin other words\b",
        r"改写|重写|润色|翻译|校对|修改|改成|改得|纠正|换(?:个|种)说法",
    ),
    "brainstorming": (
        r"\bideas?\b|\bbrainstorm|\bsuggest|\brecommend|\bthink of\b|\bnames? for\b",
        r"\bthrow (?:me|some|a few)\b|\bcome up with (?:some|a few|several)\b|\bthink up\b|\bpossibilities\b",
        r"\bwhat else\b|\boptions\?|\bwhat tricks\b",
        r"\binspiration\b|\btopics for\b",
        r"\b(?:list|give me|name|what are) (?:me )?"
        r"(?:some|a few|several|\d+|two|three|four|five|six|seven|eight|nine|ten)\b",
        r"\b(?:ways|tips|gifts|things) (?:to|for|on)\b|\bwhat (?:could|should|can) (?:i|we)\b|\bwould suit\b",
        r"想法|点子|主意|建议|推荐|头脑风暴|有哪些|想.{0,4}(?:个|些|几)|可以做(?:些)?什么",
    ),
    "chat": (
        r"^\W*(?:hi|hello|hey|yo|good (?:morning|evening|night)|thanks|thank you|ok(?:ay)?|bye|goodbye)\b",
        r"^\W*(?:lol|haha\w*)\b",
        r"\bhow are you\b|\bwho are you\b|\byour (?:name|favou?rite)\b",
        r"\bwhat do you think (?:about|of)\b|^\W*you(?:'re| are)\b",
        r"\b(?:do|are|can|have|were) you (?:ever|feel|like|alive|sentient|real|a (?:robot|bot|human))\b",
        r"\bi(?: am|'m| feel| felt) (?:(?:so|very|a bit|really|feeling) )*"
        r"(?:sad|lonely|happy|bored|tired|angry|depressed|anxious|stressed|afraid|excited)\b",
        r"\bcan't stop crying\b|\bmy \w+ (?:died|left me|broke up)\b",
        r"\bguess what\b|\bentertain me\b|\blet's (?:just )?(?:talk|chat)\b|\btalk to me\b",
        r"^\W*(?:你好|您好|嗨|哈喽|谢谢|早上好|晚安|再见)|心情|陪我|聊天|聊聊|失恋|难受|难过|伤心|你(?:是谁|叫什么|喜欢)",
        r"我(?:很|好|太|今天)(?:累|开心|高兴|无聊|孤独)",
    ),
    "generation": (
        r"\b(?:write|compose|draft|generate|create|make up|come up with|design|invent)\b",
        r"\b(?:continue|finish|complete|develop|prepare)\b",
        rf"\b(?:i need|need|give me|make me|tell me|make|want|into) (?:an? |the )(?:[\w-]+ ){{0,4}}{WORKS}\b",
        rf"^(?!\W*{ASKING}\b)(?:[^\s.?!:]+ ){{0,5}}{WORKS}\b",
        rf"\b(?:give|make|sketch|produce|need|want|i'd (?:like|love))\b[^.?!]{{0,40}}"
        rf"\b\w+ (?:\w+[ -]){{0,3}}{WORKS}\b",
        r"\bcarry on\b|\bpoint of view of\b|\bin the format of\b",
        r"\b(?:function|script|program|query|regex|class) (?:that|to|which|for)\b",
        r"写|撰|创作|生成|编(?:写|一)|起草|作一首|讲.{0,3}个|实现|制定|续写|设计|祝福语|文案|作文",
    ),
    "open_qa": (
        rf"^\W*(?:so |and |please |can you |could you |in )*(?:{ASKING}"
        r"|explain|define|describe|tell me (?:about|what|how|why))(?:'s|'re)?\b",
        r"\?\s*$|\bdifference between\b|\bmeaning of\b",
        r"？|什么|为什么|怎么|如何|谁|哪|多少|几|多(?:高|大|远|久|长)|解释|介绍|是不是|吗",
    ),
}
"""Words of each use case, in the order in which they are looked for."""
PATTERNS = {name: re.compile("|".join(words), re.IGNORECASE) for name, words in RULES.items()}
TELLING = re.compile(
    r"^\W*(?:i|i'\w+|my|we|we'\w+|our|just|today|yesterday|tonight)\b|^\W*(?:我|今天)", re.IGNORECASE
)
"""How people begin to tell of themselves; chat, where nothing else is asked."""
READ = 2_000
"""Characters of a prompt's beginning, and of its end, that the rules read."""

STOP_WORDS = {
    "en": "the and is of to a in that it you what how i my for with please write do are can this",
    "de": "der die das und ist nicht ich ein eine zu mit wie was für auf den bitte mir wir",
    "fr": "le la les et est des une un je vous que pour dans qui pas comment sur avec mon",
    "es": "el los las y es una por para como que con en mi cómo qué un del se me",
    "it": "il lo gli e è una per come che con di mi un della sono non cosa nel",
    "pt": "o os as e é uma para como que com em meu um da do não por se me",
}
WORDS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}
SCRIPTS = (
    ("ja", re.compile("[\u3041-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7a3]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("cyrillic", re.compile("[\u0400-\u04ff]")),
    ("arabic", re.compile("[\u0600-\u06ff]")),
)


def use_case_of(messages: Sequence[Message]) -> str:
    """The use case of a conversation's last question; a later turn that asks for nothing known is chat, as
    is a story of oneself."""
    question = next((each.content for each in reversed(messages) if each.role == "user"), "")
    read = question if len(question) <= 2 * READ else f"{question[:READ]}\n{question[-READ:]}"
    found = next((name for name, pattern in PATTERNS.items() if pattern.search(read)), "other")
    if found != "other":
        return found
    return "chat" if TELLING.search(read) or any(each.role == "assistant" for each in messages) else "other"


def language_of(text: str) -> str:
    """A language or script by its letters, or by the stop words among its words; `unknown` for neither."""
    letters = sum(letter.isalpha() for letter in text) or 1
    for name, script in SCRIPTS:
        if len(script.findall(text)) > letters / 10:
            return name
    words = re.findall(r"[^\W\d_]+", text.casefold())
    shares = {language: sum(word in known for word in words) for language, known in WORDS.items()}
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] else "unknown"
