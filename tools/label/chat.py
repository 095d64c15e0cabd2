from kdc.tools.label.source import Source


class Chat(Source):
    async def answer(self, ask, text):
        raise NotImplementedError
